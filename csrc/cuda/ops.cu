// The operations: which way each goes, where its numbers lie, what it launches.
#include <stdexcept>

#include "backward.cuh"
#include "forward.cuh"
#include "problem.cuh"
#include "runtime.cuh"

namespace se_kernels::cuda {
namespace {

Variant variant_of(const Problem& p) { return {p.squeeze, p.act, p.act_slope, p.gate}; }

// Where things lie in the workspace.
struct Workspace {
  std::int64_t bytes = 0, counters, parts, partials, hidden, z, a, s, peak, ties;

  Workspace(const Problem& p, const Cut& cut) {
    const std::int64_t number = is_wide(p) ? 8 : 4;
    counters = place(counters_bytes(cut));
    parts = place(cut.splits == 1 ? 0 : 3 * p.images * cut.splits * p.channels * number);
    partials = place(std::int64_t(cut.groups) * cut.blocks * cut.images * p.reduced * number);
    hidden = place(p.images * p.reduced * number);
    z = place(p.images * p.channels * number);
    a = place(p.images * p.reduced * number);
    s = place(p.images * p.channels * number);
    peak = z, ties = s;  // of backward
  }
  std::int64_t place(std::int64_t size) {
    const std::int64_t here = bytes;
    bytes += aligned(size);
    return here;
  }
};

Passing passing_of(const Call& call, const Workspace& space) {
  return {at(call, space.parts), at(call, space.partials), at(call, space.hidden),
          static_cast<std::uint32_t*>(at(call, space.counters))};
}

template <class Parameters>
void launch_forward(const Problem& p, const Parameters& parameters, bool tail, const Call& call) {
  with_number(p, [&](auto number) {
    launch_forward<decltype(number)>(parameters, p.layout, tail, call.gpu, call.stream);
  });
}
template <class Parameters>
void launch_backward(const Problem& p, const Parameters& parameters, bool tail, const Call& call) {
  with_number(p, [&](auto number) {
    launch_backward<decltype(number)>(parameters, p.layout, tail, call.gpu, call.stream);
  });
}

ClusterPlan plan_forward(const Problem& p, const Forward& f, const Gpu& gpu) {
  return cluster_plan(sizes_of(p), traits_of(p, false), gpu, {f.x, f.residual, as_input(f.y)});
}

// Whether the plan is followed; an error where it must be and cannot.
bool follows(const ClusterPlan& plan, const Call& call) {
  if (call.way == Way::cluster && !plan.why_not.empty())
    throw std::runtime_error("one pass in a cluster: " + plan.why_not);
  if (call.way == Way::automatic) return plan.why_not.empty() && plan.slower.empty();
  return call.way == Way::cluster;
}

void sweep_forward(const Problem& p, const ForwardParameters& block, Sweep sweep,
                   std::initializer_list<Input> images, const Call& call) {
  const Sizes sizes = sizes_of(p);
  const Traits traits = traits_of(p, false);
  const Cut cut = cut_of(sizes, traits, call.gpu);
  const Workspace space(p, cut);
  ForwardTwoSweeps parameters{block, only(cut, sweep), shared_of(cut, traits, call.gpu),
                              passing_of(call, space), access_of(cut, sizes, traits, images)};
  const OnDevice device(call.gpu.device);
  launch_forward(p, parameters, block.relu || block.residual.data, call);
}

void sweep_backward(const Problem& p, const BackwardParameters& block, Sweep sweep,
                    std::initializer_list<Input> images, const Call& call) {
  const Sizes sizes = sizes_of(p);
  const Traits traits = traits_of(p, true);
  const Cut cut = cut_of(sizes, traits, call.gpu);
  const Workspace space(p, cut);
  BackwardTwoSweeps parameters{block, only(cut, sweep), shared_of(cut, traits, call.gpu),
                               passing_of(call, space), access_of(cut, sizes, traits, images)};
  parameters.passing.hidden = block.da;
  parameters.block.peak = at(call, space.peak), parameters.block.ties = at(call, space.ties);
  const OnDevice device(call.gpu.device);
  launch_backward(p, parameters, block.y.data || block.dr.data, call);
}

}  // namespace

Gpu gpu_at(int device) { return properties_of(device); }

std::int64_t workspace_bytes(const Problem& p, const Gpu& gpu) {
  const auto bytes = [&](bool backward) {
    return Workspace(p, cut_of(sizes_of(p), traits_of(p, backward), gpu)).bytes;
  };
  return std::max(bytes(false), bytes(true));
}

void forward(const Problem& p, const Forward& f, const Call& call) {
  const Workspace space(p, cut_of(sizes_of(p), traits_of(p, false), call.gpu));
  const ForwardParameters block{sizes_of(p),
                                variant_of(p),
                                images_of(p, f.x),
                                images_of(p, f.residual),
                                images_of(p, f.y),
                                {f.w1, p.w_type},
                                {f.w2, p.w_type},
                                {f.b1, p.w_type},
                                {f.b2, p.w_type},
                                f.z ? f.z : at(call, space.z),
                                f.a ? f.a : at(call, space.a),
                                f.s ? f.s : at(call, space.s),
                                true,
                                p.post == Post::relu};
  const ClusterPlan plan = plan_forward(p, f, call.gpu);
  if (!follows(plan, call))
    return sweep_forward(p, block, Sweep::both, {f.x, f.residual, as_input(f.y)}, call);
  const OnDevice device(call.gpu.device);
  launch_forward(p, ForwardCluster{block, plan.slices, plan.shared},
                 block.relu || block.residual.data, call);
}

void backward(const Problem& p, const Backward& b, const Call& call) {
  BackwardParameters block{};
  block.sizes = sizes_of(p), block.variant = variant_of(p);
  block.dy = images_of(p, b.dy), block.x = images_of(p, b.x), block.y = images_of(p, b.y);
  block.dr = images_of(p, b.dr), block.dx = images_of(p, b.dx);
  block.w1 = {b.w1, p.w_type}, block.w2 = {b.w2, p.w_type};
  block.a = b.a, block.s = b.s, block.de = b.de, block.da = b.da, block.h = b.h;
  block.excites = true;
  const std::initializer_list<Input> images{b.x, b.dy, b.y, as_input(b.dx), as_input(b.dr)};
  ClusterPlan plan;
  if (b.dx.data)
    plan = cluster_plan(sizes_of(p), traits_of(p, true), call.gpu, images);
  else
    plan.why_not = "expected dx to be wanted";
  if (!follows(plan, call))
    return sweep_backward(p, block, b.dx.data ? Sweep::both : Sweep::first_and_excite, images,
                          call);
  const OnDevice device(call.gpu.device);
  launch_backward(p, BackwardCluster{block, plan.slices, plan.shared}, b.y.data || b.dr.data, call);
}

void squeeze(const Problem& p, const SqueezeForward& f, const Call& call) {
  ForwardParameters block{};
  block.sizes = sizes_of(p), block.variant = variant_of(p);
  block.x = images_of(p, f.x), block.z = f.z;
  sweep_forward(p, block, Sweep::first, {f.x}, call);
}

void scale(const Problem& p, const ScaleForward& f, const Call& call) {
  ForwardParameters block{};
  block.sizes = sizes_of(p), block.variant = variant_of(p);
  block.x = images_of(p, f.x), block.residual = images_of(p, f.residual);
  block.y = images_of(p, f.y), block.s = const_cast<void*>(f.s);
  block.relu = p.post == Post::relu;
  sweep_forward(p, block, Sweep::second, {f.x, f.residual, as_input(f.y)}, call);
}

void scale_backward(const Problem& p, const ScaleBackward& b, const Call& call) {
  BackwardParameters block{};
  block.sizes = sizes_of(p), block.variant = variant_of(p);
  block.variant.squeeze = Squeeze::avg;
  block.dy = images_of(p, b.dy), block.y = images_of(p, b.y);
  block.dx = images_of(p, b.dx), block.dr = images_of(p, b.dr);
  block.s = b.s, block.ds = b.ds;
  if (b.ds) block.x = images_of(p, b.x);
  sweep_backward(p, block, Sweep::first, {b.x, b.dy, b.y, as_input(b.dx), as_input(b.dr)}, call);
}

void squeeze_backward(const Problem& p, const SqueezeBackward& b, const Call& call) {
  BackwardParameters block{};
  block.sizes = sizes_of(p), block.variant = variant_of(p);
  const std::initializer_list<Input> images{b.x, b.g, as_input(b.dx)};
  if (p.squeeze != Squeeze::avg) {
    block.x = images_of(p, b.x);
    sweep_backward(p, block, Sweep::first, {b.x}, call);
  }
  block.dy = images_of(p, b.g), block.dx = images_of(p, b.dx);
  block.s = b.g.data ? b.s : nullptr, block.dz = b.dz;
  sweep_backward(p, block, Sweep::second, images, call);
}

std::string explain(const Problem& p, const Forward& f, const Call& call) {
  const ClusterPlan plan = plan_forward(p, f, call.gpu);
  if (follows(plan, call)) {
    const Slices& slices = plan.slices;
    return "one pass, " + std::to_string(slices.clusters) + " clusters of " +
           std::to_string(slices.ranks) + " blocks, " + std::to_string(slices.images) +
           " images at a time, " + std::to_string(plan.shared.bytes) + " bytes a block, some " +
           std::to_string(int(plan.microseconds + 1)) + " us predicted";
  }
  const Cut cut = cut_of(sizes_of(p), traits_of(p, false), call.gpu);
  const std::string why = call.way == Way::two_sweeps ? "as asked"
                          : plan.why_not.empty()      ? plan.slower
                                                      : plan.why_not;
  return "two sweeps (" + why + "), " + std::to_string(cut.groups) + " groups of " +
         std::to_string(cut.images) + " images, " + std::to_string(cut.blocks * cut.splits) +
         " tiles each, the first sweep " + std::to_string(cut.lag) + " groups ahead";
}

}  // namespace se_kernels::cuda
