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
SE_DEVICE void load_four(const Weights& from, std::int64_t i, float (&v)[4]) {
  if (from.type == DType::float32) return load_four(static_cast<const float*>(from.data) + i, v);
  const Vector8 raw =
      *reinterpret_cast<const Vector8*>(static_cast<const std::uint16_t*>(from.data) + i);
  SE_UNROLL
  for (int j = 0; j < 2; ++j) {
    if (from.type == DType::bfloat16)
      widen_pair(raw.words[j], bfloat16{}, v[2 * j], v[2 * j + 1]);
    else
      widen_pair(raw.words[j], float16{}, v[2 * j], v[2 * j + 1]);
  }
}

// A product out[i][m] = Σ_k in[i][k] w(m, k) of `images` rows of in (stride K) and columns first to
// first + columns of M. w(m, k) lies at m K + k; transposed at k M + m.
struct Product {
  int images, first, columns, M, K;
};

// A warp has NI images by 4 columns of each group of lanes, and a block kSlots numbers of a warp in
// `scratch`.
constexpr int kColumns = 4, kLanesOfColumns = 8, kTileImages = 8,
              kSlots = kTileImages * kColumns * kLanesOfColumns;

// v[m][k]; past K 0, past M the last of them again.
template <bool transposed, bool wide, class A>
SE_DEVICE void load_block(const Weights& w, const Product& p, int m0, int k, A (&v)[4][4]) {
  SE_UNROLL
  for (int j = 0; j < 4; ++j) {
    if constexpr (wide && !transposed) {
      load_four(w, std::int64_t(smaller(m0 + j, p.M - 1)) * p.K + k, v[j]);
    } else if constexpr (wide) {
      A column[4];
      load_four(w, std::int64_t(k + j) * p.M + smaller(m0, p.M - 4), column);
      SE_UNROLL
      for (int m = 0; m < 4; ++m) v[m][j] = column[m];
    } else {
      SE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int m = smaller(m0 + j, p.M - 1);
        const std::int64_t at =
            transposed ? std::int64_t(k + i) * p.M + m : std::int64_t(m) * p.K + k + i;
        v[j][i] = k + i < p.K ? w.at<A>(at) : A(0);
      }
    }
  }
}

// Sums `values`, of which `held` are left, over lanes that differ in the bits of mask `top` down to
// `bottom`: each lane gives half of them away and keeps the sums of the rest, from the first'th on.
// How many it is left with; of lanes that hold the same one writes.
template <int held, int N, class A>
SE_DEVICE int scatter_sums(A (&values)[N], int top, int bottom, int& first, bool& writes) {
  if (top < bottom || top == 0) return held;
  const bool upper = (thread_index() & top) != 0;
  if constexpr (held > 1) {
    constexpr int half = held / 2;
    SE_UNROLL
    for (int j = 0; j < half; ++j) {
      const A sent = upper ? values[j] : values[j + half];
      const A kept = upper ? values[j + half] : values[j];
      values[j] = kept + shuffle_xor(sent, top);
    }
    if (upper) first += half;
    return scatter_sums<half>(values, top / 2, bottom, first, writes);
  } else {
    for (int mask = top; mask >= bottom && mask > 0; mask /= 2) {
      values[0] += shuffle_xor(values[0], mask);
      if (thread_index() & mask) writes = false;
    }
    return 1;
  }
}

template <int NI, bool transposed, bool wide, class A, class Emit>
SE_DEVICE void multiply_tiles(const Weights& w, const A* in, const Product& p, A* scratch,
                              const Emit& emit) {
  const int warps = thread_count() / kWarp, warp = thread_index() / kWarp,
            lane = thread_index() % kWarp;
  // lanes side by side along k, groups of them along m; transposed the other way round
  const int most = transposed ? (p.columns + kColumns - 1) / kColumns : (p.K + 15) / 16,
            log = transposed ? smaller(log_of(most), log_of(kLanesOfColumns))
                             : smaller(larger(log_of(most), log_of(kWarp / kLanesOfColumns)),
                                       log_of(kWarp)),
            near = lane & ((1 << log) - 1), far = lane >> log,
            along_m = transposed ? 1 << log : kWarp >> log,
            along_k = transposed ? kWarp >> log : 1 << log, m_lane = transposed ? near : far,
            k_lane = transposed ? far : near;
  const int wide_columns = kColumns * along_m, across = (p.images + NI - 1) / NI,
            tiles = across * ((p.columns + wide_columns - 1) / wide_columns);
  if (tiles == 0) return;
  int shares = 1;  // warps that share a tile's k
  while (2 * shares * tiles <= warps) shares *= 2;
  const int at_once = warps / shares;
  SE_ROLLED
  for (int begin = 0; begin < tiles; begin += at_once) {
    const int tile = begin + warp / shares, share = warp % shares, i0 = tile % across * NI,
              m0 = p.first + tile / across * wide_columns + m_lane * kColumns;
    A sums[NI * kColumns] = {};
    if (tile < tiles && warp < at_once * shares) {
      int rows[NI];  // those past the last image repeat it
      SE_UNROLL
      for (int i = 0; i < NI; ++i) rows[i] = smaller(i0 + i, p.images - 1) * p.K;
      SE_ROLLED
      for (int k = 4 * (share * along_k + k_lane); k < p.K; k += 4 * shares * along_k) {
        A block[4][4];
        load_block<transposed, wide>(w, p, m0, k, block);
        SE_UNROLL
        for (int i = 0; i < NI; ++i) {
          A v[4];
          if constexpr (wide) {
            load_four(in + rows[i] + k, v);
          } else {
            SE_UNROLL
            for (int j = 0; j < 4; ++j) v[j] = k + j < p.K ? in[rows[i] + k + j] : A(0);
          }
          SE_UNROLL
          for (int m = 0; m < kColumns; ++m) {
            SE_UNROLL
            for (int j = 0; j < 4; ++j) sums[i * kColumns + m] += block[m][j] * v[j];
          }
        }
      }
    }
    int first = 0;
    bool writes = true;
    const int held = scatter_sums<NI * kColumns>(sums, transposed ? kWarp / 2 : along_k / 2,
                                                 transposed ? along_m : 1, first, writes);
    // (warps, along m, NI, columns)
    SE_UNROLL
    for (int j = 0; j < NI * kColumns; ++j)
      if (writes && j < held) scratch[warp * kSlots + m_lane * NI * kColumns + first + j] = sums[j];
    block_barrier();
    const int size = NI * wide_columns;
    SE_ROLLED
    for (int o = thread_index(); o < smaller(at_once, tiles - begin) * size; o += thread_count()) {
      const int local = o / size, at = o - local * size, group = at / (NI * kColumns),
                i = at / kColumns % NI, done = begin + local, image = done % across * NI + i,
                column = done / across * wide_columns + group * kColumns + at % kColumns;
      if (image >= p.images || column >= p.columns) continue;
      A total = 0;
      SE_ROLLED
      for (int k = 0; k < shares; ++k) total += scratch[(local * shares + k) * kSlots + at];
      emit(image, p.first + column, total);
    }
    if (begin + at_once < tiles) block_barrier();
  }
}

// emit(image, m, out[image][m]) for the whole product.
template <bool transposed, class A, class Emit>
SE_DEVICE void multiply(const Weights& w, const A* in, const Product& p, A* scratch,
                        const Emit& emit) {
  if constexpr (sizeof(A) == 4) {
    const std::uintptr_t four = w.type == DType::float32 ? 16 : 8;
    if (p.K % 4 == 0 && (!transposed || p.M % 4 == 0) &&
        reinterpret_cast<std::uintptr_t>(w.data) % four == 0 &&
        reinterpret_cast<std::uintptr_t>(in) % sizeof(Vector16) == 0) {
      if (p.images <= 2) return multiply_tiles<2, transposed, true>(w, in, p, scratch, emit);
      return multiply_tiles<kTileImages, transposed, true>(w, in, p, scratch, emit);
    }
  }
  multiply_tiles<kTileImages, transposed, false>(w, in, p, scratch, emit);
}

}  // namespace se_kernels::cuda
