// The batch-wide schedule forward: moments, squeeze, scale, a launch each, a block a tile. Compiled
// once for each SE_NUMBER.
#include "kernels.cuh"

namespace se_kernels::cuda {
namespace {

// Near the mean of a channel's numbers in a tile: the mean of four of them, spread so that no image
// border holds them all.
template <class X, Layout layout>
SE_DEVICE Sum<X> sample_mean(const Images& t, const Tile& tile, int c) {
  constexpr int kSamples = 4;
  Sum<X> total = 0;
  with_type<X>(t.type, [&](auto number) {
    SE_UNROLL
    for (int i = 0; i < kSamples; ++i) {
      const int p = tile.p0 + (2 * i + 1) * (tile.p1 - tile.p0) / (2 * kSamples + 1);
      const unsigned char* from =
          place_of<Mode<X, layout, false, false>>(t, Octet{tile.n, c, p, 1, 0, 0});
      total += Sum<X>(widen(*reinterpret_cast<const decltype(number)*>(from)));
    }
  });
  const Sum<X> mean = total * Sum<X>(1.0 / kSamples);
  return mean - mean == Sum<X>(0) ? mean : Sum<X>(0);  // infinity and NaN: no shift
}

template <class X, Layout layout>
SE_KERNEL(kThreads, kNormBlocks<X>)
norm_moments(SE_PARAMETER SweepParameters p) {
  using A = Sum<X>;
  constexpr Channels channels = layout == Layout::nhwc ? Channels::each : Channels::one;
  const SharedMemory<X> shared(p.shared);
  const Part part = part_of(p.plan, p.reversed);
  const Tile tile = tile_of(part, p.sizes, p.plan);
  fill_table<1>(shared.table, tile,
                [&](int c, A(&shift)[1]) { shift[0] = sample_mean<X, layout>(p.x, tile, c); });
  find_sums<Moments<A>>(
      p, shared, tile, part,
      [&](const auto& emit) {
        reduce_x<X, layout, CollectShifted, 128>(
            p, shared, tile,
            [&](auto mode, const Octet& at) {
              return constants_of<decltype(mode), channels, 1>(shared.table, tile, at);
            },
            [](auto& collect, const auto& shift, const auto& x, int here) {
              collect.add_shifted(shift.k[0], x, here);
            },
            [&](int c, const Totals<A, 2>& sums) {
              emit(c, Moments<A>(tile.p1 - tile.p0, shared.table.data[c - tile.c0], sums));
            });
      },
      [&](std::int64_t at, const Moments<A>& sums) {
        static_cast<double*>(p.found[0])[at] = sums.mean();
        static_cast<double*>(p.found[1])[at] = double(sums.v[3]);
      });
}

// equation 2, of v = pre(t)
template <class X, Layout layout>
SE_KERNEL(kThreads, kNormBlocks<X>)
norm_squeeze(SE_PARAMETER SweepParameters p) {
  using A = Sum<X>;
  constexpr Channels channels = layout == Layout::nhwc ? Channels::each : Channels::one;
  const SharedMemory<X> shared(p.shared);
  const Part part = part_of(p.plan, p.reversed);
  const Tile tile = tile_of(part, p.sizes, p.plan);
  fill_table<3>(shared.table, tile, [&](int c, A(&numbers)[3]) {
    numbers[0] = static_cast<const A*>(p.mean)[c];
    numbers[1] = static_cast<const A*>(p.scale)[c];
    numbers[2] = static_cast<const A*>(p.bias)[c];
  });
  find_sums<Totals<A, 1>>(
      p, shared, tile, part,
      [&](const auto& emit) {
        reduce_x<X, layout, Of<1>::template Collect, 64>(
            p, shared, tile,
            [&](auto mode, const Octet& at) {
              return constants_of<decltype(mode), channels, 3>(shared.table, tile, at);
            },
            [&](auto& collect, const auto& constants, const auto& x, int here) {
              const auto& k = constants.k;
              constexpr int W = std::extent_v<std::remove_reference_t<decltype(x)>>;
              A v[W];
              SE_UNROLL
              for (int j = 0; j < W; ++j) v[j] = (x[j] - k[0][j]) * k[1][j] + k[2][j];
              activate_norm(p.pre, v);
              SE_UNROLL
              for (int j = 0; j < W; ++j)
                if (j < here) collect.add(j, 0, v[j]);
            },
            emit);
      },
      [&](std::int64_t at, const Totals<A, 1>& sums) {
        static_cast<A*>(p.found[0])[at] = sums.v[0] / A(p.sizes.pixels);
      });
}

// equation 4: y = post(s pre(t) + residual), and the mask
template <class X, Layout layout>
SE_KERNEL(kThreads, kNormBlocks<X>)
norm_scale(SE_PARAMETER SweepParameters p) {
  const SharedMemory<X> shared(p.shared);
  const Part part = part_of(p.plan, p.reversed);
  apply_forward<true, true, X, layout>(p, shared, tile_of(part, p.sizes, p.plan));
}

}  // namespace

template <>
void launch_norm_forward<SE_NUMBER>(NormKernel kind, const SweepParameters& p, Layout layout,
                                    const Gpu& gpu, void* stream) {
  const auto run = [&](const char* name, auto kernel) {
    launch_tiles(kernel, p, name_of<SE_NUMBER>(name, layout), gpu, stream);
  };
  with_layout(layout, [&](auto constant) {
    constexpr Layout of = decltype(constant)::value;
    if (kind == NormKernel::moments) return run("norm_moments", norm_moments<SE_NUMBER, of>);
    if (kind == NormKernel::squeeze) return run("norm_squeeze", norm_squeeze<SE_NUMBER, of>);
    run("norm_scale", norm_scale<SE_NUMBER, of>);
  });
}

}  // namespace se_kernels::cuda
