// The phases that both schedules share, forward and backward: reduce a tile, apply to a tile. With
// t = (x - mean) scale + bias and v = pre(t) if there is a norm, else v = x:
//
//   z = Σ v / P                y = post(s v + residual)
//   g = dy post'(y), Σ g v     dx = pre'(t) scale (g s + d) + slope (x - mean) + offset
#pragma once

#include "excite.cuh"
#include "sweep.cuh"

namespace se_kernels::cuda {

// ---- the norm's activation

SE_DEVICE float fast_sigmoid(float v) { return reciprocal(1.f + std::exp(-v)); }
SE_DEVICE double fast_sigmoid(double v) { return sigmoid(v); }

// v = pre(t), in place.
template <class A, int W>
SE_DEVICE void activate_norm(Pre pre, A (&t)[W]) {
  switch (pre) {
    case Pre::identity:
      break;
    case Pre::relu:
      SE_UNROLL
      for (int j = 0; j < W; ++j) t[j] = t[j] <= A(0) ? A(0) : t[j];
      break;
    case Pre::silu:
      SE_UNROLL
      for (int j = 0; j < W; ++j) t[j] *= fast_sigmoid(t[j]);
      break;
    case Pre::hardswish:
      SE_UNROLL
      for (int j = 0; j < W; ++j) t[j] *= clamp_0_6(t[j] + A(3)) * A(1.0 / 6);
      break;
  }
}

// v = pre(t) and slope = pre'(t); a bit for each that is closed: not even an infinite gradient
// passes.
template <class A, int W>
SE_DEVICE unsigned differentiate_norm(Pre pre, const A (&t)[W], A (&v)[W], A (&slope)[W]) {
  unsigned closed = 0;
  SE_UNROLL
  for (int j = 0; j < W; ++j) v[j] = t[j], slope[j] = 1;
  switch (pre) {
    case Pre::identity:
      break;
    case Pre::relu:
      SE_UNROLL
      for (int j = 0; j < W; ++j)
        if (t[j] <= A(0)) v[j] = slope[j] = 0, closed |= 1u << j;
      break;
    case Pre::silu:
      SE_UNROLL
      for (int j = 0; j < W; ++j) {
        const A open = fast_sigmoid(t[j]);
        v[j] = t[j] * open, slope[j] = open * (A(1) + t[j] * (A(1) - open));
      }
      break;
    case Pre::hardswish:
      SE_UNROLL
      for (int j = 0; j < W; ++j) {
        v[j] = t[j] * (clamp_0_6(t[j] + A(3)) * A(1.0 / 6));
        if (t[j] <= A(-3))
          slope[j] = 0, closed |= 1u << j;
        else if (!(t[j] >= A(3)))  // NaN stays
          slope[j] = t[j] * A(1.0 / 3) + A(0.5);
      }
      break;
  }
  return closed;
}

// ---- reduce, forward

struct Nothing {};

template <int W, class T>
SE_DEVICE constexpr int width_of(const T (&)[W]) {
  return W;
}

// body(collect, constants, x, here) takes in x, eight numbers or fewer, of which `here` count.
template <class X, Layout layout, template <class, int> class Collect, int bytes, class Begin,
          class Body, class Emit>
SE_DEVICE void reduce_x(const SweepParameters& p, const SharedMemory<X>& shared, const Tile& tile,
                        const Begin& begin, const Body& body, const Emit& emit) {
  using A = Sum<X>;
  with_mode<X, layout>(p.access, [&](auto mode) {
    using M = decltype(mode);
    constexpr int Batch = kOctets<M, bytes>;
    const auto load = [&](const Octet& at, bool on) {
      return load_eight<M, Reuse::keep>(p.x, at, on);
    };
    const auto constants = [&](const Octet& at) { return begin(mode, at); };
    if constexpr (M::flat) {
      for_octets<M, Batch>(
          tile, p.sizes, [](const Octet&) { return 0; }, load,
          [&](int, const Octet& at, const Eight<M>& raw) {
            stage_eight<M>(shared.stage, tile, p.sizes, at, raw);
          });
      block_barrier();
      reduce_staged<M, Collect, 1>(
          tile, p.sizes, shared.stage, shared.scratch, constants,
          [&](auto& collect, const auto& constants, const auto& v) {
            body(collect, constants, v[0], width_of(v[0]));
          },
          emit);
    } else {
      reduce_octets<M, Batch, Collect>(
          tile, shared.scratch, constants, load,
          [&](auto& collect, const auto& constants, const Octet& at, const Eight<M>& raw) {
            A x[kOctet];
            unpack_eight<M>(raw, x);
            body(collect, constants, x, M::wide ? kOctet : at.here);
          },
          emit);
    }
  });
}

// Σ x of a tile's rows; and the largest x, if `peaks`.
template <bool peaks, class X, Layout layout, class Emit>
SE_DEVICE void reduce_forward(const SweepParameters& p, const SharedMemory<X>& shared,
                              const Tile& tile, const Emit& emit) {
  const auto begin = [](auto, const Octet&) { return Nothing{}; };
  const auto body = [](auto& collect, Nothing, const auto& x, int here) {
    SE_UNROLL
    for (int j = 0; j < width_of(x); ++j) {
      if (j >= here) continue;
      if constexpr (peaks)
        collect.add(j, x[j], x[j]);
      else
        collect.add(j, 0, x[j]);
    }
  };
  if constexpr (peaks)
    reduce_x<X, layout, CollectPeaks, 16>(p, shared, tile, begin, body, emit);
  else
    reduce_x<X, layout, Of<1>::template Collect, 128>(p, shared, tile, begin, body, emit);
}

// ---- apply, forward

template <bool normed, class X>
SE_DEVICE void fill_forward(const SweepParameters& p, const SharedMemory<X>& shared,
                            const Tile& tile) {
  using A = Sum<X>;
  const A* s = image_of<A>(p.s, tile.n, p.sizes);
  fill_table<normed ? 4 : 1>(shared.table, tile, [&](int c, auto& numbers) {
    numbers[0] = s[c];
    if constexpr (normed) {
      numbers[1] = static_cast<const A*>(p.mean)[c];
      numbers[2] = static_cast<const A*>(p.scale)[c];
      numbers[3] = static_cast<const A*>(p.bias)[c];
    }
  });
}

// y = post(s v + residual), and the mask; without a tail y = s v.
template <bool normed, bool tail, class X, Layout layout>
SE_DEVICE void apply_forward(const SweepParameters& p, const SharedMemory<X>& shared,
                             const Tile& tile) {
  using A = Sum<X>;
  fill_forward<normed>(p, shared, tile);
  with_mode<X, layout>(p.access, [&](auto mode) {
    using M = decltype(mode);
    constexpr Channels channels = kChannels<M>;
    struct Two {
      Eight<M> x, residual;
    };
    for_octets<M, kOctets<M, tail ? 64 : 128>>(
        tile, p.sizes,
        [&](const Octet& at) {
          return constants_of<M, channels, normed ? 4 : 1>(shared.table, tile, at);
        },
        [&](const Octet& at, bool on) {
          Two raw;
          raw.x = load_eight<M, Reuse::drop>(p.x, at, on);
          if (tail && p.residual.data)
            raw.residual = load_eight<M, Reuse::drop>(p.residual, at, on);
          return raw;
        },
        [&](const auto& constants, const Octet& at, const Two& raw) {
          const auto& k = constants.k;
          A v[kOctet];
          unpack_eight<M>(raw.x, v);
          if constexpr (normed) {
            SE_UNROLL
            for (int j = 0; j < kOctet; ++j) v[j] = (v[j] - k[1][j]) * k[2][j] + k[3][j];
            activate_norm(p.pre, v);
          }
          SE_UNROLL
          for (int j = 0; j < kOctet; ++j) v[j] *= k[0][j];
          if (tail && p.residual.data) {  // -0 stays -0 without
            A r[kOctet];
            unpack_eight<M>(raw.residual, r);
            SE_UNROLL
            for (int j = 0; j < kOctet; ++j) v[j] += r[j];
          }
          unsigned bits = 0;
          if (tail && (p.relu || p.mask)) {
            SE_UNROLL
            for (int j = 0; j < kOctet; ++j) {
              const bool open = !(v[j] <= A(0));  // NaN stays
              if (open) bits |= 1u << j;
              v[j] = open || !p.relu ? v[j] : A(0);
            }
          }
          store_eight<M, Reuse::drop>(p.y, at, v);
          if (!tail || !p.mask) return;
          if constexpr (M::flat)
            shared.stage[(at.run - tile.c0 * p.sizes.pixels) / kOctet] = std::uint8_t(bits);
          else
            p.mask[mask_place<layout>(at, p.sizes)] =
                std::uint8_t(M::wide ? bits : bits & ((1u << at.here) - 1));
        });
    if constexpr (M::flat && tail) {
      if (!p.mask) return;
      block_barrier();
      store_flat_mask(p.mask, tile, p.sizes, shared.stage);
    }
  });
}

// ---- reduce, backward

// What is summed: Σ g x; with the largest x; of a norm Σ g and Σ g (x - mean); with an activation
// five sums.
enum class Terms { product, peaks, norm, activation };

template <Terms terms>
constexpr int kTermConstants = terms == Terms::activation ? 3 : 1;
template <Terms terms>
struct TermsOf {
  template <class A, int V>
  using Collect = CollectTotals<A, V,
                                terms == Terms::product ? 1
                                : terms == Terms::norm  ? 2
                                                        : 5>;
};
template <>
struct TermsOf<Terms::peaks> {
  template <class A, int V>
  using Collect = CollectPeaks<A, V>;
};

// The terms of g and x, eight numbers or fewer, of which `here` count.
template <Terms terms, class Collect, class Constants, class A, int W>
SE_DEVICE void add_terms(Collect& collect, Pre pre, const Constants& constants, int here,
                         const A (&g)[W], const A (&x)[W]) {
  [[maybe_unused]] const auto& k = constants.k;
  constexpr int kAtOnce = terms == Terms::activation && W > 4 ? 4 : W;  // more take more registers
  SE_UNROLL
  for (int first = 0; first < W; first += kAtOnce) {
    [[maybe_unused]] A centred[kAtOnce], t[kAtOnce], v[kAtOnce], slope[kAtOnce];
    [[maybe_unused]] unsigned closed = 0;
    if constexpr (terms == Terms::activation) {
      SE_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        const int j = first + i;
        centred[i] = x[j] - k[0][j], t[i] = centred[i] * k[1][j] + k[2][j];
      }
      closed = differentiate_norm(pre, t, v, slope);
    }
    SE_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int j = first + i;
      if (j >= here) continue;
      if constexpr (terms == Terms::product) {
        collect.add(j, 0, g[j] * x[j]);
      } else if constexpr (terms == Terms::peaks) {
        collect.add(j, g[j] * x[j], x[j]);
      } else if constexpr (terms == Terms::norm) {
        collect.add(j, 0, g[j]), collect.add(j, 1, g[j] * (x[j] - k[0][j]));
      } else {
        const A passed = closed >> i & 1u ? A(0) : g[j] * slope[i];
        collect.add(j, 0, g[j] * v[i]), collect.add(j, 1, passed);
        collect.add(j, 2, passed * centred[i]), collect.add(j, 3, slope[i]);
        collect.add(j, 4, slope[i] * centred[i]);
      }
    }
  }
}

// g = dy where the mask is open, dr = g, dx = g s where it is wanted now, and the sums. Without a
// tail g = dy; only with one may dy or x be absent.
template <Terms terms, bool tail, class X, Layout layout, class Emit>
SE_DEVICE void reduce_backward(const SweepParameters& p, const SharedMemory<X>& shared,
                               const Tile& tile, const Emit& emit) {
  using A = Sum<X>;
  constexpr bool normed = terms == Terms::norm || terms == Terms::activation;
  constexpr int K = kTermConstants<terms>;
  const bool scales = !normed && tail && p.dx.data && !p.d;  // no sweep after this writes dx
  if (normed || scales)
    fill_table<K>(shared.table, tile, [&](int c, auto& numbers) {
      if constexpr (normed) numbers[0] = static_cast<const A*>(p.mean)[c];
      if constexpr (!normed) numbers[0] = image_of<A>(p.s, tile.n, p.sizes)[c];
      if constexpr (terms == Terms::activation) {
        numbers[1] = static_cast<const A*>(p.scale)[c];
        numbers[2] = static_cast<const A*>(p.bias)[c];
      }
    });
  with_mode<X, layout>(p.access, [&](auto mode) {
    using M = decltype(mode);
    // as the registers allow
    constexpr int Batch = terms == Terms::activation || terms == Terms::peaks ? 1 : kOctets<M, 64>;
    struct Loaded {
      Eight<M> dy, x;
      unsigned bits;
    };
    // dy comes again, unless dr takes its place or this is the only sweep
    [[maybe_unused]] const bool again = !p.dr.data && !scales;
    const auto load = [&](const Octet& at, bool on) {
      Loaded raw;
      if constexpr (tail) {
        raw.dy = raw.x = Eight<M>{};
        if (p.dy.data)
          raw.dy = again ? load_eight<M, Reuse::keep>(p.dy, at, on)
                         : load_eight<M, Reuse::drop>(p.dy, at, on);
        if (p.x.data)
          raw.x = normed || terms == Terms::peaks ? load_eight<M, Reuse::keep>(p.x, at, on)
                                                  : load_eight<M, Reuse::drop>(p.x, at, on);
        raw.bits = load_mask<M>(p.mask, at, p.sizes, on);
      } else {
        raw.dy = load_eight<M, Reuse::keep>(p.dy, at, on);
        raw.x = terms == Terms::peaks ? load_eight<M, Reuse::keep>(p.x, at, on)
                                      : load_eight<M, Reuse::drop>(p.x, at, on);
      }
      return raw;
    };
    const auto masked = [&](const Octet& at, const Loaded& raw, A(&g)[kOctet]) {
      unpack_eight<M>(raw.dy, g);
      if constexpr (tail) {
        if (p.mask) apply_mask(raw.bits, g);
        if (p.dr.data) store_eight<M, Reuse::keep>(p.dr, at, g);
        if (scales) {
          const auto s = constants_of<M, kChannels<M>, 1>(shared.table, tile, at);
          A dx[kOctet];
          SE_UNROLL
          for (int j = 0; j < kOctet; ++j) dx[j] = g[j] * s.k[0][j];
          store_eight<M, Reuse::drop>(p.dx, at, dx);
        }
      }
    };
    const auto begin = [&](const Octet& at) {
      constexpr Channels channels = layout == Layout::nhwc ? Channels::each : Channels::one;
      return constants_of<M, channels, normed ? K : 0>(shared.table, tile, at);
    };
    if constexpr (M::flat) {
      // g, then x behind it, through shared memory
      unsigned char* stage_x =
          shared.stage + std::size_t(tile.channels * p.sizes.pixels) * sizeof(X);
      for_octets<M, Batch>(
          tile, p.sizes, [](const Octet&) { return 0; }, load,
          [&](int, const Octet& at, const Loaded& raw) {
            if constexpr (tail) {
              A g[kOctet];
              masked(at, raw, g);
              stage_eight<M>(shared.stage, tile, p.sizes, at, pack_eight<M>(g));
            } else {
              stage_eight<M>(shared.stage, tile, p.sizes, at, raw.dy);
            }
            stage_eight<M>(stage_x, tile, p.sizes, at, raw.x);
          });
      block_barrier();
      reduce_staged<M, TermsOf<terms>::template Collect, 2>(
          tile, p.sizes, shared.stage, shared.scratch, begin,
          [&](auto& collect, const auto& constants, const auto& v) {
            add_terms<terms>(collect, p.pre, constants, width_of(v[0]), v[0], v[1]);
          },
          emit);
    } else {
      reduce_octets<M, Batch, TermsOf<terms>::template Collect>(
          tile, shared.scratch, begin, load,
          [&](auto& collect, const auto& constants, const Octet& at, const Loaded& raw) {
            A g[kOctet], x[kOctet];
            masked(at, raw, g);
            unpack_eight<M>(raw.x, x);
            add_terms<terms>(collect, p.pre, constants, M::wide ? kOctet : at.here, g, x);
          },
          emit);
    }
  });
}

// ---- apply, backward

// What dz adds to dx: mean to each pixel, share to each that is the peak. In place over dz and
// ties.
template <class A>
SE_DEVICE void spread_gradient(Squeeze kind, int pixels, A& dz_to_mean, A peak, A& ties_to_share) {
  const A whole = kind == Squeeze::avgmax ? A(0.5) * dz_to_mean : dz_to_mean;
  dz_to_mean = kind == Squeeze::max ? A(0) : whole / A(pixels);
  ties_to_share = whole / (peak == peak ? ties_to_share : A(0));  // nothing equals a NaN
}

// dx = g s + d, or of a norm all of the above. Terms::peaks: share, too, where x is the peak.
template <Terms terms, bool tail, class X, Layout layout>
SE_DEVICE void apply_backward(const SweepParameters& p, const SharedMemory<X>& shared,
                              const Tile& tile) {
  using A = Sum<X>;
  constexpr bool normed = terms == Terms::norm || terms == Terms::activation,
                 peaks = terms == Terms::peaks;
  constexpr int K = terms == Terms::activation ? 7 : normed || peaks ? 4 : 2;
  const A *s = image_of<A>(p.s, tile.n, p.sizes), *d = image_of<A>(p.d, tile.n, p.sizes);
  fill_table<K>(shared.table, tile, [&](int c, auto& k) {
    const auto of = [&](const void* from) { return from ? static_cast<const A*>(from)[c] : A(0); };
    k[0] = p.s ? s[c] : A(0);
    if constexpr (normed) {
      const A scale = of(p.scale);
      k[0] *= scale, k[1] = scale * d[c], k[2] = of(p.slope), k[3] = of(p.mean);
      if constexpr (terms == Terms::norm) k[1] += of(p.offset);
      if constexpr (terms == Terms::activation)
        k[4] = of(p.offset), k[5] = scale, k[6] = of(p.bias);
    } else if constexpr (peaks) {
      k[1] = d[c];
      k[2] = load_shared_result(image_of<A>(p.peak, tile.n, p.sizes) + c);
      k[3] = load_shared_result(image_of<A>(p.ties, tile.n, p.sizes) + c);
      spread_gradient(p.squeeze, p.sizes.pixels, k[1], k[2], k[3]);
    } else {
      k[1] = d[c] / A(p.sizes.pixels);
    }
  });
  // g was stored as dr, if that is wanted
  const bool stored = !normed && tail && p.dr.data;
  const Images from = stored ? p.dr : p.dy;
  const std::uint8_t* mask = stored ? nullptr : p.mask;
  const bool reads = peaks || terms == Terms::activation || (normed && p.slope);
  with_mode<X, layout>(p.access, [&](auto mode) {
    using M = decltype(mode);
    struct Loaded {
      Eight<M> g, x;
      unsigned bits;
    };
    constexpr int bytes = terms == Terms::product ? 128 : terms == Terms::norm ? 32 : 16;
    for_octets<M, kOctets<M, bytes>>(
        tile, p.sizes,
        [&](const Octet& at) { return constants_of<M, kChannels<M>, K>(shared.table, tile, at); },
        [&](const Octet& at, bool on) {
          Loaded raw;
          if (tail && !from.data)
            raw.g = Eight<M>{};
          else
            raw.g = load_eight<M, Reuse::drop>(from, at, on);
          if (terms != Terms::product) {
            raw.x = Eight<M>{};
            if (reads) raw.x = load_eight<M, Reuse::drop>(p.x, at, on);
          }
          if (tail) raw.bits = load_mask<M>(mask, at, p.sizes, on);
          return raw;
        },
        [&](const auto& constants, const Octet& at, const Loaded& raw) {
          const auto& k = constants.k;
          A g[kOctet];
          [[maybe_unused]] A x[kOctet];
          unpack_eight<M>(raw.g, g);
          if (terms != Terms::product) unpack_eight<M>(raw.x, x);
          if (tail && mask) apply_mask(raw.bits, g);
          SE_UNROLL
          for (int j = 0; j < kOctet; ++j) g[j] = g[j] * k[0][j] + k[1][j];
          if constexpr (peaks) {
            SE_UNROLL
            for (int j = 0; j < kOctet; ++j)  // an infinite share: NaN elsewhere
              g[j] += (x[j] == k[2][j] ? A(1) : A(0)) * k[3][j];
          } else if constexpr (terms == Terms::norm) {
            if (reads) {
              SE_UNROLL
              for (int j = 0; j < kOctet; ++j) g[j] += k[2][j] * (x[j] - k[3][j]);
            }
          } else if constexpr (terms == Terms::activation) {
            A t[kOctet], v[kOctet], slope[kOctet];
            SE_UNROLL
            for (int j = 0; j < kOctet; ++j) {
              x[j] -= k[3][j];
              t[j] = x[j] * k[5][j] + k[6][j];
            }
            const unsigned closed = differentiate_norm(p.pre, t, v, slope);
            SE_UNROLL
            for (int j = 0; j < kOctet; ++j) g[j] = closed >> j & 1u ? A(0) : g[j] * slope[j];
            if (p.slope) {
              SE_UNROLL
              for (int j = 0; j < kOctet; ++j) g[j] += k[2][j] * x[j] + k[4][j];
            }
          }
          store_eight<M, Reuse::drop>(p.dx, at, g);
        });
  });
}

}  // namespace se_kernels::cuda
