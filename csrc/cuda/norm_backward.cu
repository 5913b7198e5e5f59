// The backward kernels with a batch norm before the block: scale, squeeze and norm, a sweep each.
// Compiled once for each SE_NUMBER.
#include "norm.cuh"
#include "norm_sums.cuh"

namespace se_kernels::cuda {
namespace {

constexpr int kAtOnce = 4;  // numbers that are differentiated: more take more registers

// What t is of; without an activation only the mean is wanted.
template <class A, Channels channels, bool wide, bool identity_>
struct Centred {
  static constexpr bool identity = identity_;
  PerChannel<A, channels> mean, scale, bias;
  SE_DEVICE Centred(const NormParameters& p, const Octet& at) : scale{}, bias{} {
    mean = per_channel<A, channels, wide>(p.mean, at);
    if (identity) return;
    scale = per_channel<A, channels, wide>(p.scale, at);
    bias = per_channel<A, channels, wide>(p.bias, at);
  }
};

// The terms that g and x, eight numbers or one, of which `here` count, add to the sums.
template <class Collect, class Norm, class A, int W>
SE_DEVICE void add_terms(Collect& collect, Pre pre, const Norm& norm, int here, const A (&g)[W],
                         const A (&x)[W]) {
  if constexpr (Norm::identity) {
    SE_UNROLL
    for (int j = 0; j < W; ++j)
      if (j < here) collect.add(j, 0, g[j]), collect.add(j, 1, g[j] * (x[j] - norm.mean[j]));
  } else {
    constexpr int H = W < kAtOnce ? W : kAtOnce;
    SE_UNROLL
    for (int first = 0; first < W; first += H) {
      A centred[H], t[H], v[H], slope[H];
      SE_UNROLL
      for (int i = 0; i < H; ++i) {
        const int j = first + i;
        centred[i] = x[j] - norm.mean[j], t[i] = centred[i] * norm.scale[j] + norm.bias[j];
      }
      const unsigned closed = differentiate_norm(pre, t, v, slope);
      SE_UNROLL
      for (int i = 0; i < H; ++i) {
        const int j = first + i;
        if (j >= here) continue;
        const A passed = closed >> i & 1u ? A(0) : g[j] * slope[i];
        collect.add(j, 0, g[j] * v[i]), collect.add(j, 1, passed);
        collect.add(j, 2, passed * centred[i]), collect.add(j, 3, slope[i]);
        collect.add(j, 4, slope[i] * centred[i]);
      }
    }
  }
}

// g = dy where the mask is open, dr = g, and the sums of it that all other gradients follow from
template <class X, Layout layout, bool identity>
SE_KERNEL(kThreads, kNormBlocks<X>)
norm_scale_backward(SE_PARAMETER NormParameters p) {
  using A = Sum<X>;
  constexpr int K = identity ? 2 : kMostSums;
  constexpr Channels channels = kChannels<layout, false>;
  const NormBlock<X> here(p);
  const auto sweep = [&](const auto& emit) {
    with_octets<X, layout>(p.access, [&](auto wide_, auto flat_) {
      constexpr bool wide = decltype(wide_)::value, flat = decltype(flat_)::value;
      constexpr int Batch = identity ? kEights<X, wide, 32> : 1;  // as the registers allow
      struct Loaded {
        Eight<X, wide> dy, x;
        unsigned bits;
      };
      const auto load = [&](const Octet& at) {
        Loaded raw;
        // dy comes again, unless dr takes its place
        raw.dy = p.dr.data ? load_eight<X, layout, wide, Reuse::drop>(p.dy, at)
                           : load_eight<X, layout, wide, Reuse::keep>(p.dy, at);
        raw.x = load_eight<X, layout, wide, Reuse::keep>(p.x, at);
        raw.bits = load_mask<layout, flat>(p.mask, at, p.sizes);
        return raw;
      };
      const auto masked = [&](const Octet& at, const Loaded& raw, A(&g)[kOctet]) {
        unpack_eight<X, wide>(raw.dy, g);
        apply_mask(raw.bits, g);
        if (p.dr.data) store_eight<X, layout, wide, Reuse::keep>(p.dr, at, g);
      };
      struct Nothing {};
      using Norm = Centred<A, channels, wide, identity>;
      const auto begin = [&](const Octet& at) { return Norm(p, at); };
      if constexpr (flat) {
        // g, then x behind it, through shared memory: a row starts anywhere
        unsigned char* stage_x =
            here.work + std::size_t(here.tile.channels * here.tile.p1) * sizeof(X);
        walk_octets<X, layout, true, Batch>(
            here.tile, p.sizes, [](const Octet&) { return Nothing{}; }, load,
            [&](Nothing, const Octet& at, const Loaded& raw) {
              A g[kOctet];
              masked(at, raw, g);
              const int staged = staged_at(here.tile, at);
              stage_eight<X>(here.work, staged, pack_eight<X>(g));
              stage_eight<X>(stage_x, staged, raw.x);
            });
        block_barrier();
        struct Both {
          Raw<X, 1> g, x;
        };
        using Collect = CollectTotals<A, 1, K>;
        reduce_staged<4, Collect>(
            here.tile, here.scratch, begin,
            [&](int i) {
              return Both{load_staged<X, 1>(here.work, i), load_staged<X, 1>(stage_x, i)};
            },
            [&](Collect& collect, const auto& norm, const Both& raw) {
              const A g[1] = {raw.g.v}, x[1] = {raw.x.v};
              add_terms(collect, p.pre, norm, 1, g, x);
            },
            emit);
      } else {
        // a number at a time they are read again: there is no register left for them
        const auto begin_wide = [&](const Octet& at) {
          if constexpr (wide)
            return begin(at);
          else
            return Nothing{};
        };
        reduce_octets<X, layout, wide, Batch, Of<K>::template Collect>(
            here.tile, here.scratch, begin_wide, load,
            [&](auto& collect, const auto& norm, const Octet& at, const Loaded& raw) {
              A g[kOctet], x[kOctet];
              masked(at, raw, g);
              unpack_eight<X, wide>(raw.x, x);
              if constexpr (wide)
                add_terms(collect, p.pre, norm, kOctet, g, x);
              else
                add_terms(collect, p.pre, begin(at), at.here, g, x);
            },
            emit);
      }
    });
  };
  find_sums<Totals<A, K>>(p, here, sweep, [&](std::int64_t at, const Totals<A, K>& sums) {
    SE_UNROLL
    for (int k = 0; k < K; ++k) static_cast<A*>(p.found[k])[at] = sums.v[k];
  });
}

// dx = scale pre'(t) (g s + d) + slope (x - mean) + offset
template <class X, Layout layout>
SE_KERNEL(kThreads, kNormBlocks<X>)
norm_squeeze_backward(SE_PARAMETER NormParameters p) {
  using A = Sum<X>;
  const NormBlock<X> here(p);
  const bool reads = p.x.data != nullptr, trains = p.slope != nullptr;
  with_octets<X, layout>(p.access, [&](auto wide_, auto flat_) {
    constexpr bool wide = decltype(wide_)::value, flat = decltype(flat_)::value;
    constexpr Channels channels = kChannels<layout, flat>;
    using Numbers = PerChannel<A, channels>;
    struct Begun {
      Numbers mean, scale, s, d, slope, offset;
    };
    struct Loaded {
      Eight<X, wide> g, x;
      unsigned bits;
    };
    walk_octets<X, layout, flat, kEights<X, wide, 32>>(
        here.tile, p.sizes,
        [&](const Octet& at) {
          const auto of = [&](const void* from) {
            return per_channel<A, channels, wide>(from, at);
          };
          Begun begun{};
          begun.scale = of(p.scale);
          begun.s = of(image_of<A>(p.s, at.n, p.sizes));
          begun.d = of(image_of<A>(p.d, at.n, p.sizes));
          if (reads) begun.mean = of(p.mean);
          if (trains) begun.slope = of(p.slope), begun.offset = of(p.offset);
          return begun;
        },
        [&](const Octet& at) {
          Loaded raw{};
          raw.g = load_eight<X, layout, wide, Reuse::drop>(p.dy, at);
          if (reads) raw.x = load_eight<X, layout, wide, Reuse::drop>(p.x, at);
          raw.bits = load_mask<layout, flat>(p.mask, at, p.sizes);
          return raw;
        },
        [&](const Begun& begun, const Octet& at, const Loaded& raw) {
          A g[kOctet], x[kOctet];
          unpack_eight<X, wide>(raw.g, g), unpack_eight<X, wide>(raw.x, x);
          apply_mask(raw.bits, g);
          A centred[kOctet];
          SE_UNROLL
          for (int j = 0; j < kOctet; ++j) {
            centred[j] = x[j] - begun.mean[j];
            g[j] = g[j] * begun.s[j] + begun.d[j];
          }
          if (p.pre != Pre::identity) {
            const Numbers bias = per_channel<A, channels, wide>(p.bias, at);
            A t[kOctet], v[kOctet], slope[kOctet];
            SE_UNROLL
            for (int j = 0; j < kOctet; ++j) t[j] = centred[j] * begun.scale[j] + bias[j];
            const unsigned closed = differentiate_norm(p.pre, t, v, slope);
            SE_UNROLL
            for (int j = 0; j < kOctet; ++j) g[j] = closed >> j & 1u ? A(0) : g[j] * slope[j];
          }
          SE_UNROLL
          for (int j = 0; j < kOctet; ++j) {
            g[j] *= begun.scale[j];
            if (trains) g[j] += begun.slope[j] * centred[j] + begun.offset[j];
          }
          store_eight<X, layout, wide, Reuse::drop>(p.dx, at, g);
        });
  });
}

}  // namespace

template <>
void launch_norm_backward<SE_NUMBER>(NormKernel kind, const NormParameters& p, Layout layout,
                                     const Gpu& gpu, void* stream) {
  const auto run = [&](const char* name, auto kernel) {
    launch_norm(name_of<SE_NUMBER>(name, layout), kernel, p, gpu, stream);
  };
  with_layout(layout, [&](auto constant) {
    constexpr Layout of = decltype(constant)::value;
    const bool identity = p.pre == Pre::identity;
    if (kind == NormKernel::scale_backward) {
      if (identity) return run("norm_scale_backward", norm_scale_backward<SE_NUMBER, of, true>);
      return run("norm_scale_backward", norm_scale_backward<SE_NUMBER, of, false>);
    }
    run("norm_squeeze_backward", norm_squeeze_backward<SE_NUMBER, of>);
  });
}

}  // namespace se_kernels::cuda
