// The operations with a batch norm before the block: how each is cut, what it launches.
#include <algorithm>

#include "kernels.cuh"
#include "problem.cuh"

namespace se_kernels::cuda {
namespace {

struct SweepNeeds {
  NormKernel kernel;
  int sums, staged, constants;
  bool reversed;
};

// What was read last is read first by the sweep after it: moments, squeeze, scale; without an
// activation moments, scale; scale_backward, squeeze_backward.
SweepNeeds needs_of(NormKernel kernel, Pre pre) {
  const bool identity = pre == Pre::identity;
  switch (kernel) {
    case NormKernel::moments:
      return {kernel, 4, 1, 1, false};
    case NormKernel::squeeze:
      return {kernel, 1, 1, 3, true};
    case NormKernel::scale:
      return {kernel, 0, 0, 4, identity};
    case NormKernel::scale_backward:
      return {kernel, identity ? 2 : kMostSums, 2, identity ? 1 : 3, false};
    case NormKernel::squeeze_backward:
      break;
  }
  return {kernel, 0, 0, identity ? 4 : 7, true};
}

Traits traits_for(const Problem& p, const SweepNeeds& needs) {
  Traits traits = types_of(p);
  traits.sums = needs.sums, traits.staged = needs.staged, traits.constants = needs.constants;
  return traits;
}

SweepParameters parameters_of(const Problem& p, const Norm& norm) {
  SweepParameters parameters{};
  parameters.sizes = sizes_of(p);
  parameters.mean = norm.mean, parameters.scale = norm.scale, parameters.bias = norm.bias;
  parameters.pre = norm.pre, parameters.relu = p.post == Post::relu;
  return parameters;
}

// sums: the first of `planes` planes (N,C), one behind the other.
void find(SweepParameters& parameters, const Problem& p, void* sums, int planes) {
  const std::int64_t plane = p.images * p.channels * (is_wide(p) ? 8 : 4);
  for (int k = 0; k < planes; ++k)
    parameters.found[k] = static_cast<unsigned char*>(sums) + k * plane;
}

void launch(const Problem& p, SweepParameters& parameters, NormKernel kernel,
            std::initializer_list<Input> images, const Call& call) {
  const SweepNeeds needs = needs_of(kernel, parameters.pre);
  const Traits traits = traits_for(p, needs);
  const Sizes& sizes = parameters.sizes;
  const TilePlan plan = parameters.plan = tile_plan_of(sizes, traits, call.gpu);
  parameters.access = access_of(plan, sizes, traits, images);
  parameters.shared = shared_of(plan, sizes, traits, call.gpu, parameters.access, false);
  parameters.reversed = needs.reversed;
  if (needs.sums > 0 && plan.splits > 1) {
    parameters.counters = call.counters ? call.counters : static_cast<std::uint32_t*>(at(call, 0));
    parameters.parts = at(call, aligned(split_counters_bytes(plan, sizes)));
  }
  const bool backward =
      kernel == NormKernel::scale_backward || kernel == NormKernel::squeeze_backward;
  const OnDevice device(call.gpu.device);
  if (parameters.counters && !call.counters)
    zero(parameters.counters, split_counters_bytes(plan, sizes), {"with a norm", 0, 0, 0},
         call.stream);
  with_number(p, [&](auto number) {
    using X = decltype(number);
    if (backward)
      launch_norm_backward<X>(kernel, parameters, p.layout, call.gpu, call.stream);
    else
      launch_norm_forward<X>(kernel, parameters, p.layout, call.gpu, call.stream);
  });
}

// The most that bytes(traits, plan) is of the sweeps with sums.
template <class Bytes>
std::int64_t most_of_sweeps(const Problem& p, const Gpu& gpu, const Bytes& bytes) {
  std::int64_t most = 0;
  for (const NormKernel kernel :
       {NormKernel::moments, NormKernel::squeeze, NormKernel::scale_backward})
    for (const Pre pre : {Pre::identity, Pre::relu}) {
      const Traits traits = traits_for(p, needs_of(kernel, pre));
      most = std::max(most, bytes(traits, tile_plan_of(sizes_of(p), traits, gpu)));
    }
  return most;
}

}  // namespace

std::int64_t norm_workspace_bytes(const Problem& p, const Gpu& gpu) {
  const Sizes sizes = sizes_of(p);
  return most_of_sweeps(p, gpu, [&](const Traits& traits, const TilePlan& plan) {
    return aligned(split_counters_bytes(plan, sizes)) + aligned(parts_bytes(plan, sizes, traits));
  });
}

std::int64_t norm_counters_bytes(const Problem& p, const Gpu& gpu) {
  const Sizes sizes = sizes_of(p);
  return most_of_sweeps(p, gpu, [&](const Traits&, const TilePlan& plan) {
    return split_counters_bytes(plan, sizes);
  });
}

void norm_moments(const Problem& p, const NormMoments& f, const Call& call) {
  SweepParameters parameters = parameters_of(p, Norm{});
  parameters.x = images_of(p, f.x);
  parameters.found[0] = f.mean, parameters.found[1] = f.m2;
  launch(p, parameters, NormKernel::moments, {f.x}, call);
}

void norm_squeeze(const Problem& p, const NormSqueeze& f, const Call& call) {
  SweepParameters parameters = parameters_of(p, f.norm);
  parameters.x = images_of(p, f.x);
  find(parameters, p, f.z, 1);
  launch(p, parameters, NormKernel::squeeze, {f.x}, call);
}

void norm_scale(const Problem& p, const NormScale& f, const Call& call) {
  SweepParameters parameters = parameters_of(p, f.norm);
  parameters.x = images_of(p, f.x), parameters.residual = images_of(p, f.residual);
  parameters.y = images_of(p, f.y), parameters.s = f.s, parameters.mask = f.mask;
  launch(p, parameters, NormKernel::scale, {f.x, f.residual, as_input(f.y)}, call);
}

void norm_scale_backward(const Problem& p, const NormScaleBackward& b, const Call& call) {
  SweepParameters parameters = parameters_of(p, b.norm);
  parameters.dy = images_of(p, b.dy), parameters.x = images_of(p, b.x);
  parameters.dr = images_of(p, b.dr), parameters.mask = const_cast<std::uint8_t*>(b.mask);
  find(parameters, p, b.sums, b.norm.pre == Pre::identity ? 2 : kMostSums);
  launch(p, parameters, NormKernel::scale_backward, {b.dy, b.x, as_input(b.dr)}, call);
}

void norm_squeeze_backward(const Problem& p, const NormSqueezeBackward& b, const Call& call) {
  SweepParameters parameters = parameters_of(p, b.norm);
  parameters.dy = images_of(p, b.g), parameters.dx = images_of(p, b.dx);
  if (b.slope || b.norm.pre != Pre::identity) parameters.x = images_of(p, b.x);
  parameters.mask = const_cast<std::uint8_t*>(b.mask);
  parameters.s = b.s, parameters.d = b.d;
  parameters.slope = b.slope, parameters.offset = b.offset;
  launch(p, parameters, NormKernel::squeeze_backward, {b.g, b.x, as_input(b.dx)}, call);
}

}  // namespace se_kernels::cuda
