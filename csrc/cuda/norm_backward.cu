// The batch-wide schedule backward: scale, then squeeze and norm, a launch each, a block a tile.
// Compiled once for each SE_NUMBER.
#include "kernels.cuh"

namespace se_kernels::cuda {
namespace {

// g = dy where the mask is open, dr = g, and the sums of it that all other gradients follow from
template <class X, Layout layout, Terms terms>
SE_KERNEL(kThreads, kNormBlocks<X>)
norm_scale_backward(SE_PARAMETER SweepParameters p) {
  using A = Sum<X>;
  using S = Totals<A, terms == Terms::norm ? 2 : kMostSums>;
  const SharedMemory<X> shared(p.shared);
  const Part part = part_of(p.plan, p.reversed);
  const Tile tile = tile_of(part, p.sizes, p.plan);
  find_sums<S>(
      p, shared, tile, part,
      [&](const auto& emit) { reduce_backward<terms, true, X, layout>(p, shared, tile, emit); },
      [&](std::int64_t at, const S& sums) {
        SE_UNROLL
        for (int k = 0; k < S::kNumbers; ++k) static_cast<A*>(p.found[k])[at] = sums.v[k];
      });
}

// dx = scale pre'(t) (g s + d) + slope (x - mean) + offset
template <class X, Layout layout, Terms terms>
SE_KERNEL(kThreads, kNormBlocks<X>)
norm_squeeze_backward(SE_PARAMETER SweepParameters p) {
  const SharedMemory<X> shared(p.shared);
  const Part part = part_of(p.plan, p.reversed);
  apply_backward<terms, true, X, layout>(p, shared, tile_of(part, p.sizes, p.plan));
}

}  // namespace

template <>
void launch_norm_backward<SE_NUMBER>(NormKernel kind, const SweepParameters& p, Layout layout,
                                     const Gpu& gpu, void* stream) {
  const auto run = [&](const char* name, auto kernel) {
    launch_tiles(kernel, p, name_of<SE_NUMBER>(name, layout), gpu, stream);
  };
  const auto of_terms = [&](auto layout_, auto terms_) {
    constexpr Layout of = decltype(layout_)::value;
    constexpr Terms terms = decltype(terms_)::value;
    if (kind == NormKernel::scale_backward)
      return run("norm_scale_backward", norm_scale_backward<SE_NUMBER, of, terms>);
    run("norm_squeeze_backward", norm_squeeze_backward<SE_NUMBER, of, terms>);
  };
  with_layout(layout, [&](auto constant) {
    if (p.pre == Pre::identity)
      return of_terms(constant, std::integral_constant<Terms, Terms::norm>{});
    of_terms(constant, std::integral_constant<Terms, Terms::activation>{});
  });
}

}  // namespace se_kernels::cuda
