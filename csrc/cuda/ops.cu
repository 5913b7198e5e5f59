// The operations: where the numbers of each lie, what it launches.
#include <algorithm>

#include "kernels.cuh"
#include "problem.cuh"

namespace se_kernels::cuda {
namespace {

Variant variant_of(const Problem& p) { return {p.squeeze, p.act, p.act_slope, p.gate}; }

Traits traits_of(const Problem& p, bool backward) {
  const bool peaks = p.squeeze != Squeeze::avg;
  Traits traits = types_of(p);
  traits.sums = peaks ? 3 : 1;
  traits.staged = traits.tensors = backward ? 2 : 1;
  traits.constants = !backward ? 1 : peaks ? 4 : 2;
  return traits;
}

// Where things lie in the workspace: the counters of the schedule, then those of the splits.
struct Workspace {
  std::int64_t bytes = 0, parts, hidden, z, a, s, ties;

  Workspace(const Problem& p, const TilePlan& plan, const Traits& traits) {
    place(schedule_counters_bytes(plan) + split_counters_bytes(plan, sizes_of(p)));
    parts = place(parts_bytes(plan, sizes_of(p), traits));
    hidden = place(p.images * p.reduced * traits.sum_bytes);
    z = place(p.images * p.channels * traits.sum_bytes);
    a = place(p.images * p.reduced * traits.sum_bytes);
    s = place(p.images * p.channels * traits.sum_bytes);
    ties = place(p.squeeze == Squeeze::avg ? 0 : p.images * p.channels * traits.sum_bytes);
  }
  std::int64_t place(std::int64_t size) {
    const std::int64_t here = bytes;
    bytes += aligned(size);
    return here;
  }
};

// One call: its plan and its workspace.
struct Local {
  const Problem& p;
  const Call& call;
  Sizes sizes;
  Traits traits;
  TilePlan plan;
  Workspace space;

  Local(const Problem& p, const Call& call, bool backward)
      : p(p),
        call(call),
        sizes(sizes_of(p)),
        traits(traits_of(p, backward)),
        plan(tile_plan_of(sizes, traits, call.gpu)),
        space(p, plan, traits) {}

  SweepParameters sweep(Sweep which, std::initializer_list<Input> images) const {
    SweepParameters sweep{};
    sweep.sizes = sizes, sweep.plan = only(plan, sizes, which);
    sweep.squeeze = p.squeeze, sweep.pre = Pre::identity, sweep.relu = p.post == Post::relu;
    sweep.access = access_of(plan, sizes, traits, images);
    sweep.shared = shared_of(plan, sizes, traits, call.gpu, sweep.access, true);
    sweep.counters = counters() + schedule_counters_bytes(plan) / 4;
    sweep.parts = at(call, space.parts);
    return sweep;
  }
  std::uint32_t* counters() const { return static_cast<std::uint32_t*>(at(call, 0)); }

  void launch(const ForwardParameters& f) const {
    const OnDevice device(call.gpu.device);
    with_number(p, [&](auto number) {
      launch_forward<decltype(number)>(f, p.layout, f.sweep.residual.data || f.sweep.relu, call.gpu,
                                       call.stream);
    });
  }
  // Phases alone may lack a tensor: those are the tail's.
  void launch(const BackwardParameters& b) const {
    const OnDevice device(call.gpu.device);
    const bool tail = b.sweep.mask || b.sweep.dr.data || !b.excites;
    with_number(p, [&](auto number) {
      launch_backward<decltype(number)>(b, p.layout, tail, call.gpu, call.stream);
    });
  }
};

}  // namespace

Gpu gpu_at(int device) { return properties_of(device); }

std::int64_t workspace_bytes(const Problem& p, const Gpu& gpu) {
  Problem most = p;
  most.squeeze = Squeeze::max;
  std::int64_t bytes = 0;
  for (const bool backward : {false, true})
    for (const Problem& one : {p, most}) {
      const Traits traits = traits_of(one, backward);
      bytes =
          std::max(bytes, Workspace(one, tile_plan_of(sizes_of(one), traits, gpu), traits).bytes);
    }
  return bytes;
}

void forward(const Problem& p, const Forward& f, const Call& call) {
  const Local local(p, call, false);
  ForwardParameters all{};
  all.sweep = local.sweep(Sweep::both, {f.x, f.residual, as_input(f.y)});
  all.sweep.x = images_of(p, f.x), all.sweep.residual = images_of(p, f.residual);
  all.sweep.y = images_of(p, f.y), all.sweep.mask = f.mask;
  all.variant = variant_of(p);
  all.w1 = {f.w1, p.w_type}, all.w2 = {f.w2, p.w_type};
  all.b1 = {f.b1, p.w_type}, all.b2 = {f.b2, p.w_type};
  all.z = f.z ? f.z : at(call, local.space.z), all.a = f.a ? f.a : at(call, local.space.a);
  all.s = f.s ? f.s : at(call, local.space.s), all.hidden = at(call, local.space.hidden);
  all.sweep.s = all.s;
  all.counters = local.counters(), all.excites = true;
  local.launch(all);
}

void backward(const Problem& p, const Backward& b, const Call& call) {
  const Local local(p, call, true);
  BackwardParameters all{};
  all.sweep = local.sweep(b.dx.data ? Sweep::both : Sweep::first_and_excite,
                          {b.x, b.dy, as_input(b.dx), as_input(b.dr)});
  all.sweep.x = images_of(p, b.x), all.sweep.dy = images_of(p, b.dy);
  all.sweep.dr = images_of(p, b.dr), all.sweep.mask = const_cast<std::uint8_t*>(b.mask);
  all.sweep.s = b.s, all.variant = variant_of(p);
  all.w1 = {b.w1, p.w_type}, all.w2 = {b.w2, p.w_type};
  all.a = b.a, all.de = b.de, all.da = b.da, all.h = b.h;
  all.dz = at(call, local.space.z), all.sweep.d = all.dz;
  all.peak = at(call, local.space.s), all.ties = at(call, local.space.ties);
  all.sweep.peak = all.peak, all.sweep.ties = all.ties;
  all.sweep.dx = images_of(p, b.dx);
  all.counters = local.counters(), all.excites = true;
  local.launch(all);
}

void squeeze(const Problem& p, const SqueezeForward& f, const Call& call) {
  const Local local(p, call, false);
  ForwardParameters all{};
  all.sweep = local.sweep(Sweep::first, {f.x});
  all.sweep.x = images_of(p, f.x);
  all.variant = variant_of(p), all.z = f.z, all.counters = local.counters();
  local.launch(all);
}

void scale(const Problem& p, const ScaleForward& f, const Call& call) {
  const Local local(p, call, false);
  ForwardParameters all{};
  all.sweep = local.sweep(Sweep::second, {f.x, f.residual, as_input(f.y)});
  all.sweep.x = images_of(p, f.x), all.sweep.residual = images_of(p, f.residual);
  all.sweep.y = images_of(p, f.y), all.sweep.mask = f.mask, all.sweep.s = f.s;
  all.variant = variant_of(p), all.counters = local.counters();
  local.launch(all);
}

void scale_backward(const Problem& p, const ScaleBackward& b, const Call& call) {
  Problem mean = p;
  mean.squeeze = Squeeze::avg;
  const Local local(mean, call, true);
  BackwardParameters all{};
  all.sweep = local.sweep(Sweep::first, {b.x, b.dy, as_input(b.dx), as_input(b.dr)});
  all.sweep.dy = images_of(p, b.dy), all.sweep.mask = const_cast<std::uint8_t*>(b.mask);
  all.sweep.dx = images_of(p, b.dx), all.sweep.dr = images_of(p, b.dr), all.sweep.s = b.s;
  if (b.ds) all.sweep.x = images_of(p, b.x);
  all.variant = variant_of(mean), all.ds = b.ds, all.counters = local.counters();
  local.launch(all);
}

void squeeze_backward(const Problem& p, const SqueezeBackward& b, const Call& call) {
  const Local local(p, call, true);
  BackwardParameters all{};
  all.variant = variant_of(p), all.counters = local.counters();
  all.peak = at(call, local.space.s), all.ties = at(call, local.space.ties);
  const bool peaks = p.squeeze != Squeeze::avg;
  if (peaks) {
    all.sweep = local.sweep(Sweep::first, {b.x});
    all.sweep.x = images_of(p, b.x);
    local.launch(all);
  }
  all.sweep = local.sweep(Sweep::second, {b.x, b.g, as_input(b.dx)});
  if (peaks) all.sweep.x = images_of(p, b.x);
  all.sweep.dy = images_of(p, b.g), all.sweep.dx = images_of(p, b.dx);
  all.sweep.s = b.g.data ? b.s : nullptr, all.sweep.d = b.dz;
  all.sweep.peak = all.peak, all.sweep.ties = all.ties;
  local.launch(all);
}

std::string explain(const Problem& p, const Gpu& gpu) {
  const TilePlan plan = tile_plan_of(sizes_of(p), traits_of(p, false), gpu);
  return std::to_string(plan.groups) + " groups of " + std::to_string(plan.images) + " images, " +
         std::to_string(plan.blocks * plan.splits) + " tiles per image, the first sweep " +
         std::to_string(plan.lag) + " groups ahead";
}

}  // namespace se_kernels::cuda
