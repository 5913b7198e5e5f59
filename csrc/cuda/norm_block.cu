// The block with a batch norm before it as one call each way: sweeps over the batch, and the solve
// between them.
#include "problem.cuh"
#include "solve.cuh"

namespace se_kernels::cuda {
namespace {

// Of the sweeps there are no FCs, and the weights' type is that of the numbers.
Problem sweep_of(const Problem& p) {
  Problem sweep = p;
  sweep.reduced = 0, sweep.w_type = is_wide(p) ? DType::float64 : DType::float32;
  return sweep;
}

Variant variant_of(const Problem& p) { return {p.squeeze, p.act, p.act_slope, p.gate}; }

// What lies in a workspace, one behind the other.
class Space {
 public:
  explicit Space(const Problem& p) : p_(p), size_(is_wide(p) ? 8 : 4) {}
  std::int64_t take(std::int64_t bytes) {
    const std::int64_t here = bytes_;
    bytes_ += aligned(bytes);
    return here;
  }
  std::int64_t per_image(std::int64_t numbers) { return take(p_.images * numbers * size_); }
  std::int64_t per_channel() { return take(p_.channels * size_); }
  // A sweep's counters, and those of a solve behind them.
  std::int64_t take_counters(const Gpu& gpu) {
    of_sweep_ = norm_counters_bytes(sweep_of(p_), gpu) / std::int64_t(sizeof(std::uint32_t));
    return take(counters() * std::int64_t(sizeof(std::uint32_t)));
  }
  std::int64_t counters() const { return of_sweep_ + kSolveCounters; }
  std::int64_t sweep_counters() const { return of_sweep_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  const Problem& p_;
  const std::int64_t size_;
  std::int64_t bytes_ = 0, of_sweep_ = 0;
};

struct ForwardSpace : Space {
  std::int64_t sweeps, counters_at, means, m2, z, h, parts;
  ForwardSpace(const Problem& p, const SolvePlan& plan, const Gpu& gpu) : Space(p) {
    sweeps = take(norm_workspace_bytes(sweep_of(p), gpu));
    counters_at = take_counters(gpu);
    means = take(p.images * p.channels * sizeof(double));
    m2 = take(p.images * p.channels * sizeof(double));
    z = per_image(p.channels), h = per_image(p.reduced);
    parts = per_image(plan.splits * p.reduced);
  }
};

struct BackwardSpace : Space {
  std::int64_t sweeps, counters_at, sums, de, z, d, h, da, parts, channel_parts, slope, offset;
  BackwardSpace(const Problem& p, Pre pre, const SolvePlan& plan, const Gpu& gpu) : Space(p) {
    sweeps = take(norm_workspace_bytes(sweep_of(p), gpu));
    counters_at = take_counters(gpu);
    sums = per_image((pre == Pre::identity ? 2 : 5) * p.channels);
    de = per_image(p.channels), z = per_image(p.channels), d = per_image(p.channels);
    h = per_image(p.reduced), da = per_image(p.reduced);
    parts = per_image(plan.splits * p.reduced);
    channel_parts = take(2 * plan.image_tiles * p.channels * sizeof(double));
    slope = per_channel(), offset = per_channel();
  }
};

Norm norm_of(const Problem& p, const void* norm, Pre pre) {
  const auto* mean = static_cast<const unsigned char*>(norm);
  const std::int64_t row = p.channels * (is_wide(p) ? 8 : 4);
  return {mean, mean + row, mean + 2 * row, pre};
}

// With counters that are zero at the launch.
Call counting(Call call, std::uint32_t* counters) {
  call.counters = counters;
  return call;
}

// body(number) with the type of the numbers.
template <class Body>
void with_sums(const Problem& p, const Body& body) {
  if (is_wide(p)) return body(double{});
  body(float{});
}

}  // namespace

std::int64_t norm_forward_workspace_bytes(const Problem& p, const Gpu& gpu) {
  return ForwardSpace(p, solve_plan(p, true, gpu), gpu).bytes();
}

std::int64_t norm_backward_workspace_bytes(const Problem& p, Pre pre, const Gpu& gpu) {
  return BackwardSpace(p, pre, solve_plan(p, false, gpu), gpu).bytes();
}

void norm_forward(const Problem& p, const NormForward& f, const Call& call) {
  const SolvePlan plan = solve_plan(p, true, call.gpu);
  const ForwardSpace space(p, plan, call.gpu);
  const bool active = f.pre != Pre::identity;
  const Problem sweep = sweep_of(p);
  const OnDevice device(call.gpu.device);

  void *means = at(call, space.means), *m2 = at(call, space.m2), *z = at(call, space.z);
  if (f.training || !(active || f.means)) norm_moments(sweep, {f.x, means, m2}, call);
  NormSolve solve{};
  solve.images = int(p.images), solve.channels = int(p.channels);
  solve.pixels = double(p.pixels), solve.momentum = f.momentum, solve.eps = f.eps;
  solve.training = f.training, solve.mean = f.mean, solve.var = f.var;
  solve.means = f.means && !f.training ? f.means : static_cast<const double*>(means);
  solve.m2 = static_cast<const double*>(m2);
  solve.weight = f.weight, solve.bias = f.bias, solve.moved = f.moved, solve.norm = f.norm;
  solve.squeezed = active ? nullptr : f.squeezed, solve.z = z;
  solve.counters = static_cast<std::uint32_t*>(at(call, space.counters_at));
  solve.zeroed = int(space.counters());
  with_sums(
      p, [&](auto number) { launch_solve_norm<decltype(number)>(solve, call.gpu, call.stream); });

  const Norm norm = norm_of(p, f.norm, f.pre);
  if (active) norm_squeeze(sweep, {f.x, norm, f.squeezed}, counting(call, solve.counters));
  const ExciteSolve excite{int(p.images),
                           int(p.channels),
                           int(p.reduced),
                           variant_of(p),
                           {f.w1, p.w_type},
                           {f.w2, p.w_type},
                           {f.b1, p.w_type},
                           {f.b2, p.w_type},
                           plan,
                           active ? f.squeezed : z,
                           f.a,
                           at(call, space.h),
                           f.s,
                           at(call, space.parts),
                           solve.counters + space.sweep_counters()};
  with_sums(p, [&](auto number) {
    launch_solve_excite<decltype(number)>(excite, call.gpu, call.stream);
  });
  norm_scale(sweep, {f.x, f.residual, norm, f.s, f.y, f.mask}, call);
}

void norm_backward(const Problem& p, const NormBackward& b, const Call& call) {
  const SolvePlan plan = solve_plan(p, false, call.gpu);
  const BackwardSpace space(p, b.pre, plan, call.gpu);
  const bool active = b.pre != Pre::identity;
  const Problem sweep = sweep_of(p);
  const Norm norm = norm_of(p, b.norm, b.pre);
  const OnDevice device(call.gpu.device);

  auto* counters = static_cast<std::uint32_t*>(at(call, space.counters_at));
  zero(counters, space.counters() * sizeof(std::uint32_t), {"norm_scale_backward", 0, 0, 0},
       call.stream);
  norm_scale_backward(sweep, {b.dy, b.x, b.mask, norm, b.dr, at(call, space.sums)},
                      counting(call, counters));
  BackwardSolve solve{};
  solve.images = int(p.images), solve.channels = int(p.channels), solve.reduced = int(p.reduced);
  solve.pixels = double(p.pixels), solve.count = double(p.images) * double(p.pixels);
  solve.variant = variant_of(p), solve.plan = plan, solve.active = active;
  solve.w1 = {b.w1, p.w_type}, solve.w2 = {b.w2, p.w_type};
  solve.sums = at(call, space.sums), solve.norm = b.norm, solve.squeezed = b.squeezed;
  solve.a = b.a, solve.s = b.s;
  solve.de = at(call, space.de), solve.da = at(call, space.da), solve.h = at(call, space.h);
  solve.z = active ? const_cast<void*>(b.squeezed) : at(call, space.z);
  solve.d = b.d ? b.d : at(call, space.d), solve.parts = at(call, space.parts);
  solve.channel_parts = static_cast<double*>(at(call, space.channel_parts));
  solve.dweight = b.dweight, solve.dbias = b.dbias;
  solve.slope = at(call, space.slope), solve.offset = at(call, space.offset);
  solve.dw1 = b.dw1, solve.dw2 = b.dw2, solve.db1 = b.db1, solve.db2 = b.db2;
  solve.counters = counters + space.sweep_counters();
  with_sums(p, [&](auto number) {
    launch_solve_backward<decltype(number)>(solve, call.gpu, call.stream);
  });
  if (!b.dx.data) return;
  const bool written = b.dr.data;  // then dr is g
  norm_squeeze_backward(
      sweep,
      {written ? as_input(b.dr) : b.dy, b.x, written ? nullptr : b.mask, norm, b.s, solve.d,
       b.training ? solve.slope : nullptr, b.training ? solve.offset : nullptr, b.dx},
      call);
}

void weight_gradients(const Problem& p, const WeightGradients& g, const Call& call) {
  BackwardSolve solve{};
  solve.images = int(p.images), solve.channels = int(p.channels), solve.reduced = int(p.reduced);
  solve.plan = solve_plan(p, false, call.gpu), solve.w1 = {nullptr, p.w_type};
  solve.de = const_cast<void*>(g.de), solve.da = const_cast<void*>(g.da);
  solve.h = const_cast<void*>(g.h), solve.z = const_cast<void*>(g.z);
  solve.dw1 = g.dw1, solve.dw2 = g.dw2, solve.db1 = g.db1, solve.db2 = g.db2;
  const OnDevice device(call.gpu.device);
  with_sums(p, [&](auto number) {
    launch_solve_backward<decltype(number)>(solve, call.gpu, call.stream);
  });
}

}  // namespace se_kernels::cuda
