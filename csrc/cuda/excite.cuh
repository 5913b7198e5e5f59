// excite: equation 3, z (N,C) to s (N,C), and its backward, ds to de, da, dz. Each of the FCs is a
// product of a group of images by some rows, so that a weight is read once per group.
#pragma once

#include <cmath>

#include "number.cuh"

namespace se_kernels::cuda {

struct Variant {
  Squeeze squeeze;
  Act act;
  double act_slope;
  Gate gate;
};

// ---- elementwise

template <class A>
SE_DEVICE A sigmoid(A v) {
  return A(1) / (A(1) + std::exp(-v));
}
template <class A>
SE_DEVICE A clamp_0_6(A v) {
  v = v < A(0) ? A(0) : v;
  return v > A(6) ? A(6) : v;  // NaN stays
}

// δ
template <class A>
SE_DEVICE A activate(A a, const Variant& variant) {
  constexpr A kSqrtHalf = A(0.70710678118654752440), kSqrt2OverPi = A(0.79788456080286535588);
  switch (variant.act) {
    case Act::relu:
      return a <= A(0) ? A(0) : a;
    case Act::silu:
      return a * sigmoid(a);
    case Act::gelu:
      return A(0.5) * a * (A(1) + std::erf(a * kSqrtHalf));
    case Act::gelu_tanh:
      return A(0.5) * a * (A(1) + std::tanh(kSqrt2OverPi * (a + A(0.044715) * a * a * a)));
    case Act::hardswish:
      return a * clamp_0_6(a + A(3)) / A(6);
    case Act::leaky_relu:
      return a > A(0) ? a : a * A(variant.act_slope);
    case Act::identity:
      break;
  }
  return a;
}

// da = dh δ'(a); where δ is flat even an infinite gradient stops.
template <class A>
SE_DEVICE A activate_backward(A dh, A a, const Variant& variant) {
  constexpr A kSqrtHalf = A(0.70710678118654752440), kSqrt2OverPi = A(0.79788456080286535588),
              kInvSqrt2Pi = A(0.39894228040143267794);
  switch (variant.act) {
    case Act::relu:
      return a <= A(0) ? A(0) : dh;
    case Act::silu: {
      const A open = sigmoid(a);
      return dh * (open * (A(1) + a * (A(1) - open)));
    }
    case Act::gelu:
      return dh * (A(0.5) * (A(1) + std::erf(a * kSqrtHalf)) +
                   a * kInvSqrt2Pi * std::exp(A(-0.5) * a * a));
    case Act::gelu_tanh: {
      const A t = std::tanh(kSqrt2OverPi * (a + A(0.044715) * a * a * a)),
              inner = kSqrt2OverPi * (A(1) + A(3 * 0.044715) * a * a);
      return dh * (A(0.5) * (A(1) + t) + A(0.5) * a * (A(1) - t * t) * inner);
    }
    case Act::hardswish:
      return a <= A(-3) ? A(0) : dh * (a >= A(3) ? A(1) : a / A(3) + A(0.5));
    case Act::leaky_relu:
      return a > A(0) ? dh : dh * A(variant.act_slope);
    case Act::identity:
      break;
  }
  return dh;
}

// σ
template <class A>
SE_DEVICE A open_gate(A e, Gate gate) {
  switch (gate) {
    case Gate::sigmoid:
      return sigmoid(e);
    case Gate::hardsigmoid:
      return clamp_0_6(e + A(3)) / A(6);
    case Gate::tanh:
      return std::tanh(e);
    case Gate::relu:
      break;
  }
  return e <= A(0) ? A(0) : e;
}

// de = ds σ'(e), where σ' follows from s.
template <class A>
SE_DEVICE A close_gate(A ds, A s, Gate gate) {
  switch (gate) {
    case Gate::sigmoid:
      return ds * (s * (A(1) - s));
    case Gate::hardsigmoid:
      return s > A(0) && s < A(1) ? ds / A(6) : A(0);  // 0 for NaN, as in eager
    case Gate::tanh:
      return ds * (A(1) - s * s);
    case Gate::relu:
      break;
  }
  return s <= A(0) ? A(0) : ds;
}

// ---- the FCs

struct Weights {
  const void* data;
  DType type;
  template <class A>
  SE_DEVICE A at(std::int64_t i) const {
    return load_any<A>(data, type, i);
  }
};

struct alignas(8) Vector8 {
  std::uint32_t words[2];
};

SE_DEVICE void load_four(const float* from, float (&v)[4]) {
  const Vector16 raw = *reinterpret_cast<const Vector16*>(from);
  SE_UNROLL
  for (int j = 0; j < 4; ++j) v[j] = word_to_float(raw.words[j]);
}
template <class H>
SE_DEVICE void load_four_of(H type, const void* from, float (&v)[4]) {
  const Vector8 raw = *static_cast<const Vector8*>(from);
  widen_pair(raw.words[0], type, v[0], v[1]);
  widen_pair(raw.words[1], type, v[2], v[3]);
}

// A product out[n][m] = Σ_k in[n][k] w(m, k) of `images` rows of in (N,K) from n0 on, and of
// columns first to first + columns of M. w(m, k) lies at m K + k; transposed at k M + m.
struct Product {
  int n0, images, first, columns, M, K;
};

// That of the block's item of an FC, which has `rows` of M columns.
SE_DEVICE Product product_of(const int* words, const TilePlan& plan, const Sizes& sizes, int rows,
                             int M, int K) {
  const int n0 = words[1] * plan.images, first = words[2] * rows;
  return {n0, smaller(plan.images, sizes.images - n0), first, smaller(rows, M - first), M, K};
}

// A warp has NI images by 4 columns of each group of lanes, and a block kSlots numbers of a warp in
// `scratch`.
constexpr int kColumns = 4, kLanesOfColumns = 8, kTileImages = 8, kFewImages = 2,
              kSlots = kTileImages * kColumns * kLanesOfColumns;

// Tiles of a product: lanes side by side along k, groups of them along m; transposed the other way
// round. Several warps share the k of a tile, if there are too few tiles. All but the number of
// tiles are powers of two: their logarithms.
struct Tiling {
  int log_images, log_m, log_k, log_across, tiles, log_shares;

  SE_DEVICE Tiling(const Product& p, bool transposed) {
    constexpr int kLogWarp = 5, kLogColumns = 2, kMostLogM = 3;
    log_images = log_of(p.images <= kFewImages ? kFewImages : kTileImages);
    const int log = log_of(transposed ? (p.columns + kColumns - 1) / kColumns : (p.K + 15) / 16);
    log_m = transposed ? smaller(log, kMostLogM) : kLogWarp - smaller(larger(log, 2), kLogWarp);
    log_k = kLogWarp - log_m;
    log_across = log_of(p.images) - smaller(log_of(p.images), log_images);
    const int log_columns = kLogColumns + log_m;
    tiles = (p.columns + (1 << log_columns) - 1) >> log_columns << log_across;
    log_shares = 0;
    while (tiles > 0 && 2 * tiles << log_shares <= warps()) ++log_shares;
  }
  static SE_DEVICE int warps() { return thread_count() / kWarp; }
  SE_DEVICE int at_once() const { return warps() >> log_shares; }
  SE_DEVICE int first_image(int tile) const {
    return (tile & ((1 << log_across) - 1)) << log_images;
  }
  SE_DEVICE int first_column(int tile) const { return (tile >> log_across) * kColumns << log_m; }
};

// Whether four weights, and four numbers of `in`, can be read at once.
template <bool transposed, class A>
SE_DEVICE bool reads_four(const Weights& w, const A* in, const Product& p) {
  const std::uintptr_t four = w.type == DType::float32 ? 16 : 8;
  return sizeof(A) == 4 && p.K % 4 == 0 && (!transposed || p.M % 4 == 0) &&
         reinterpret_cast<std::uintptr_t>(w.data) % four == 0 &&
         reinterpret_cast<std::uintptr_t>(in) % sizeof(Vector16) == 0;
}

// v[m][k]; past K 0, past M the last of them again.
template <bool transposed, class A>
SE_DEVICE void load_block(const Weights& w, const Product& p, bool wide, int m0, int k,
                          A (&v)[4][4]) {
  const auto at = [&](int m, int k) {
    return transposed ? std::int64_t(k) * p.M + m : std::int64_t(smaller(m, p.M - 1)) * p.K + k;
  };
  if constexpr (sizeof(A) == 4) {
    const auto load = [&](const auto& four) {
      SE_UNROLL
      for (int j = 0; j < 4; ++j) {
        if constexpr (!transposed) {
          four(at(m0 + j, k), v[j]);
        } else {
          A column[4];
          four(at(smaller(m0, p.M - 4), k + j), column);
          SE_UNROLL
          for (int m = 0; m < 4; ++m) v[m][j] = column[m];
        }
      }
    };
    const auto load_half = [&](auto type) {
      load([&](std::int64_t i, A(&to)[4]) {
        load_four_of(type, static_cast<const std::uint16_t*>(w.data) + i, to);
      });
    };
    if (wide) {
      if (w.type == DType::float32)
        return load([&](std::int64_t i, A(&to)[4]) {
          load_four(static_cast<const float*>(w.data) + i, to);
        });
      if (w.type == DType::bfloat16) return load_half(bfloat16{});
      return load_half(float16{});
    }
  }
  SE_UNROLL
  for (int j = 0; j < 4; ++j) {
    SE_UNROLL
    for (int i = 0; i < 4; ++i)
      v[j][i] = k + i < p.K ? w.at<A>(at(smaller(m0 + j, p.M - 1), k + i)) : A(0);
  }
}

// v[i][j] = in[i0 + i][k + j]; past K 0, past the last image that one again.
template <int NI, class A>
SE_DEVICE void load_rows(const A* in, const Product& p, bool wide, int i0, int k, A (&v)[NI][4]) {
  const int here = p.images - i0;
  std::uint32_t at = std::uint32_t(i0) * p.K + k;
  if constexpr (sizeof(A) == 4) {
    if (wide) {
      SE_UNROLL
      for (int i = 0; i < NI; ++i) {
        load_four(in + at, v[i]);
        if (i + 1 < here) at += p.K;
      }
      return;
    }
  }
  SE_UNROLL
  for (int i = 0; i < NI; ++i) {
    SE_UNROLL
    for (int j = 0; j < 4; ++j) v[i][j] = k + j < p.K ? in[at + j] : A(0);
    if (i + 1 < here) at += p.K;
  }
}

// Sums `values` over lanes that differ in the bits of mask `top` down to `bottom`: each lane gives
// half of those that it holds away and keeps the sums of the rest. store(i, the i-th sum), once.
template <int held, int N, class A, class Store>
SE_DEVICE void scatter_sums(A (&values)[N], int top, int bottom, int first, const Store& store) {
  if constexpr (held > 1) {
    if (top >= bottom) {
      constexpr int half = held / 2;
      const bool upper = (thread_index() & top) != 0;
      SE_UNROLL
      for (int j = 0; j < half; ++j) {
        const A sent = upper ? values[j] : values[j + half];
        const A kept = upper ? values[j + half] : values[j];
        values[j] = kept + shuffle_xor(sent, top);
      }
      return scatter_sums<half>(values, top / 2, bottom, upper ? first + half : first, store);
    }
  } else {
    for (int mask = top; mask >= bottom; mask /= 2) values[0] += shuffle_xor(values[0], mask);
    if (top >= bottom && (thread_index() & (2 * top - bottom)) != 0) return;
  }
  SE_UNROLL
  for (int j = 0; j < held; ++j) store(first + j, values[j]);
}

// The sums of the tiles from `begin` on, one of a warp, to its part of scratch: (along m, NI,
// columns).
template <int NI, bool transposed, class A>
SE_DEVICE void sum_tile(const Weights& w, const A* in, const Product& p, int begin, A* scratch) {
  const Tiling tiling(p, transposed);
  const int warp = thread_index() / kWarp, lane = thread_index() % kWarp,
            tile = begin + (warp >> tiling.log_shares), i0 = tiling.first_image(tile);
  if (tile >= tiling.tiles || warp >> tiling.log_shares >= tiling.at_once() || i0 >= p.images)
    return;
  const int low = transposed ? tiling.log_m : tiling.log_k, near = lane & ((1 << low) - 1),
            far = lane >> low, m_lane = transposed ? near : far, k_lane = transposed ? far : near,
            m0 = p.first + tiling.first_column(tile) + m_lane * kColumns,
            share = warp & ((1 << tiling.log_shares) - 1);
  const bool wide = reads_four<transposed>(w, in, p);
  A sums[NI * kColumns] = {};
  SE_ROLLED
  for (int k = 4 * ((share << tiling.log_k) + k_lane); k < p.K;
       k += 4 << tiling.log_shares << tiling.log_k) {
    A block[4][4], v[NI][4];  // all under way at a time
    load_block<transposed>(w, p, wide, m0, k, block);
    load_rows(in, p, wide, i0, k, v);
    SE_UNROLL
    for (int i = 0; i < NI; ++i) {
      SE_UNROLL
      for (int m = 0; m < kColumns; ++m) {
        SE_UNROLL
        for (int j = 0; j < 4; ++j) sums[i * kColumns + m] += block[m][j] * v[i][j];
      }
    }
  }
  A* part = scratch + warp * kSlots + m_lane * NI * kColumns;
  scatter_sums<NI * kColumns>(sums, transposed ? kWarp / 2 : (1 << tiling.log_k) / 2,
                              transposed ? 1 << tiling.log_m : 1, 0,
                              [&](int i, A sum) { part[i] = sum; });
}
template <bool transposed, class A>
SE_CALLED void sum_tiles(Weights w, const A* in, Product p, int begin, A* scratch) {
  if (p.images <= kFewImages)
    sum_tile<kFewImages, transposed>(w, in, p, begin, scratch);
  else
    sum_tile<kTileImages, transposed>(w, in, p, begin, scratch);
}

// emit(n, m, out[n][m]) for all of product(), which is worked out again where it is used, rather
// than kept in registers meanwhile.
template <bool transposed, class A, class Of, class Emit>
SE_DEVICE void multiply(const Weights& w, const A* in, const Of& product, A* scratch,
                        const Emit& emit) {
  for (int begin = 0;;) {
    const Product now = product();
    sum_tiles<transposed>(w, in + std::int64_t(now.n0) * now.K, now, begin, scratch);
    block_barrier();
    const Product p = product();
    const Tiling tiling(p, transposed);
    const int at_once = tiling.at_once(), log_group = tiling.log_images + log_of(kColumns),
              log_size = log_group + tiling.log_m,
              end = smaller(at_once, tiling.tiles - begin) << log_size;
    SE_ROLLED
    for (int o = thread_index(); o < end; o += thread_count()) {
      const int local = o >> log_size, at = o & ((1 << log_size) - 1),
                image = tiling.first_image(begin + local) +
                        (at / kColumns & ((1 << tiling.log_images) - 1)),
                column = tiling.first_column(begin + local) + (at >> log_group) * kColumns +
                         at % kColumns;
      if (image >= p.images || column >= p.columns) continue;
      A total = 0;
      SE_ROLLED
      for (int k = 0; k < 1 << tiling.log_shares; ++k)
        total += scratch[((local << tiling.log_shares) + k) * kSlots + at];
      emit(p.n0 + image, p.first + column, total);
    }
    begin += at_once;
    if (begin >= tiling.tiles) return;
    block_barrier();
  }
}

}  // namespace se_kernels::cuda
