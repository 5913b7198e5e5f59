// The image-local schedule forward: squeeze, excite, scale in one launch. Compiled once for each
// SE_NUMBER.
#include "kernels.cuh"

namespace se_kernels::cuda {
namespace {

template <class A>
SE_DEVICE A squeezed(Squeeze kind, A total, A peak, int pixels) {
  if (kind == Squeeze::max) return peak;
  const A mean = total / A(pixels);
  return kind == Squeeze::avg ? mean : A(0.5) * (mean + peak);
}

template <class X, Layout layout, bool tail>
SE_KERNEL(kThreads, kLocalBlocks<X>)
forward_local(SE_PARAMETER ForwardParameters p) {
  using A = Sum<X>;
  const SweepParameters& sweep = p.sweep;
  const Sizes& sizes = sweep.sizes;
  const TilePlan& plan = sweep.plan;
  const SharedMemory<X> shared(sweep.shared);
  const Counters counters{p.counters};
  A *z = static_cast<A*>(p.z), *a = static_cast<A*>(p.a), *s = static_cast<A*>(p.s),
    *hidden = static_cast<A*>(p.hidden);
  const int C = sizes.channels, R = sizes.reduced;

  // equation 2
  const auto squeeze = [&](const Tile& tile, const Item& item) {
    bool last;
    if (sweep.squeeze == Squeeze::avg)
      last = find_sums<Totals<A, 1>>(
          sweep, shared, tile, item.part,
          [&](const auto& emit) { reduce_forward<false, X, layout>(sweep, shared, tile, emit); },
          [&](std::int64_t at, const Totals<A, 1>& sums) {
            z[at] = squeezed(Squeeze::avg, sums.v[0], A(0), sizes.pixels);
          });
    else
      last = find_sums<Peaks<A>>(
          sweep, shared, tile, item.part,
          [&](const auto& emit) { reduce_forward<true, X, layout>(sweep, shared, tile, emit); },
          [&](std::int64_t at, const Peaks<A>& sums) {
            z[at] = squeezed(sweep.squeeze, sums.v[0], sums.v[1], sizes.pixels);
          });
    if (last && p.excites) publish(counters.reduced(item.part.n / plan.images));
  };

  // equation 3: a = W1 z + b1, h = δ(a)
  const auto first_fc = [&] {
    const auto product = [&] {
      return product_of(shared.words, plan, sizes, plan.first_fc_rows, R, C);
    };
    wait_for(counters.reduced(shared.words[1]), product().images * plan.blocks);
    multiply<false>(p.w1, z, product, shared.scratch, [&](int n, int r, A v) {
      const std::int64_t at = std::int64_t(n) * R + r;
      if (p.b1.data) v += p.b1.template at<A>(r);
      a[at] = v;
      hidden[at] = activate(v, p.variant);
    });
    publish(counters.hidden(shared.words[1]));
  };

  // equation 3: s = σ(W2 h + b2)
  const auto second_fc = [&] {
    const auto product = [&] {
      return product_of(shared.words, plan, sizes, plan.second_fc_rows, C, R);
    };
    wait_for(counters.hidden(shared.words[1]), plan.first_fc_items);
    multiply<false>(p.w2, hidden, product, shared.scratch, [&](int n, int c, A e) {
      if (p.b2.data) e += p.b2.template at<A>(c);
      s[std::int64_t(n) * C + c] = open_gate(e, p.variant.gate);
    });
    publish(counters.excited(shared.words[1]));
  };

  const Item item = take_item(counters, plan, sizes.images, shared.words);
  if (item.kind == Kind::first_fc) return first_fc();
  if (item.kind == Kind::second_fc) return second_fc();
  const Tile tile = tile_of(item.part, sizes, plan);
  if (item.kind == Kind::first_sweep) return squeeze(tile, item);
  // equation 4
  if (p.excites) wait_for(counters.excited(item.part.n / plan.images), plan.second_fc_items);
  apply_forward<false, tail, X, layout>(sweep, shared, tile);
}

}  // namespace

template <>
void launch_forward<SE_NUMBER>(const ForwardParameters& p, Layout layout, bool tail, const Gpu& gpu,
                               void* stream) {
  const auto run = [&](auto kernel) {
    launch_tickets(kernel, p, name_of<SE_NUMBER>("forward_local", layout), gpu, stream);
  };
  with_layout(layout, [&](auto constant) {
    constexpr Layout of = decltype(constant)::value;
    if constexpr (!std::is_same_v<SE_NUMBER, WideFallback>)
      if (!tail) return run(forward_local<SE_NUMBER, of, false>);
    run(forward_local<SE_NUMBER, of, true>);
  });
}

}  // namespace se_kernels::cuda
