// The image-local schedule backward: scale, excite, squeeze, backwards, in one launch. Compiled
// once for each SE_NUMBER.
#include "kernels.cuh"

namespace se_kernels::cuda {
namespace {

template <class X, Layout layout, bool tail>
SE_KERNEL(kThreads, kLocalBlocks<X>)
backward_local(SE_PARAMETER BackwardParameters p) {
  using A = Sum<X>;
  const SweepParameters& sweep = p.sweep;
  const Sizes& sizes = sweep.sizes;
  const TilePlan& plan = sweep.plan;
  const SharedMemory<X> shared(sweep.shared);
  const Counters counters{p.counters};
  const A *a = static_cast<const A*>(p.a), *s = static_cast<const A*>(sweep.s);
  A *ds = static_cast<A*>(p.ds), *de = static_cast<A*>(p.de), *da = static_cast<A*>(p.da),
    *h = static_cast<A*>(p.h), *dz = static_cast<A*>(p.dz);
  const int C = sizes.channels, R = sizes.reduced;

  // g = dy post'(y), dr = g, ds = Σ g v, de = ds σ'(e)
  const auto found = [&](std::int64_t at, A sum) {
    if (ds) ds[at] = sum;
    if (p.excites) de[at] = close_gate(sum, s[at], p.variant.gate);
  };
  const auto scale_backward = [&](const Tile& tile, const Item& item) {
    bool last;
    if (sweep.squeeze == Squeeze::avg)
      last = find_sums<Totals<A, 1>>(
          sweep, shared, tile, item.part,
          [&](const auto& emit) {
            reduce_backward<Terms::product, tail, X, layout>(sweep, shared, tile, emit);
          },
          [&](std::int64_t at, const Totals<A, 1>& sums) { found(at, sums.v[0]); });
    else
      last = find_sums<Peaks<A>>(
          sweep, shared, tile, item.part,
          [&](const auto& emit) {
            reduce_backward<Terms::peaks, tail, X, layout>(sweep, shared, tile, emit);
          },
          [&](std::int64_t at, const Peaks<A>& sums) {
            static_cast<A*>(p.peak)[at] = sums.v[1], static_cast<A*>(p.ties)[at] = sums.v[2];
            found(at, sums.v[0]);
          });
    if (last && p.excites) publish(counters.reduced(item.part.n / plan.images));
  };

  // da = δ'(a) W2ᵀ de
  const auto second_fc_backward = [&] {
    const auto product = [&] {
      return product_of(shared.words, plan, sizes, plan.first_fc_rows, R, C);
    };
    wait_for(counters.reduced(shared.words[1]), product().images * plan.blocks);
    multiply<true>(p.w2, static_cast<const A*>(de), product, shared.scratch,
                   [&](int n, int r, A dh) {
                     const std::int64_t at = std::int64_t(n) * R + r;
                     da[at] = activate_backward(dh, a[at], p.variant);
                     h[at] = activate(a[at], p.variant);
                   });
    publish(counters.hidden(shared.words[1]));
  };

  // dz = W1ᵀ da
  const auto first_fc_backward = [&] {
    const auto product = [&] {
      return product_of(shared.words, plan, sizes, plan.second_fc_rows, C, R);
    };
    wait_for(counters.hidden(shared.words[1]), plan.first_fc_items);
    multiply<true>(p.w1, static_cast<const A*>(da), product, shared.scratch,
                   [&](int n, int c, A v) { dz[std::int64_t(n) * C + c] = v; });
    publish(counters.excited(shared.words[1]));
  };

  const Item item = take_item(counters, plan, sizes.images, shared.words);
  if (item.kind == Kind::first_fc) return second_fc_backward();
  if (item.kind == Kind::second_fc) return first_fc_backward();
  const Tile tile = tile_of(item.part, sizes, plan);
  if (item.kind == Kind::first_sweep) return scale_backward(tile, item);
  // dx = g s + dz / P
  if (p.excites) wait_for(counters.excited(item.part.n / plan.images), plan.second_fc_items);
  if (sweep.squeeze == Squeeze::avg)
    apply_backward<Terms::product, tail, X, layout>(sweep, shared, tile);
  else
    apply_backward<Terms::peaks, tail, X, layout>(sweep, shared, tile);
}

}  // namespace

template <>
void launch_backward<SE_NUMBER>(const BackwardParameters& p, Layout layout, bool tail,
                                const Gpu& gpu, void* stream) {
  const auto run = [&](auto kernel) {
    launch_tickets(kernel, p, name_of<SE_NUMBER>("backward_local", layout), gpu, stream);
  };
  with_layout(layout, [&](auto constant) {
    constexpr Layout of = decltype(constant)::value;
    if constexpr (!std::is_same_v<SE_NUMBER, WideFallback>)
      if (!tail) return run(backward_local<SE_NUMBER, of, false>);
    run(backward_local<SE_NUMBER, of, true>);
  });
}

}  // namespace se_kernels::cuda
