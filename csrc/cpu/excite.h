// excite: equation 3, z (N,C) to s (N,C), and its backward, ds to de, da, dz; each over a group
// of images, so that a weight is read once a group.
#pragma once

#include <cmath>

#include "plane.h"

namespace se_kernels::SE_ISA {

// out[k][m] = bias[m] + Σ_i w[m][i] in[k][i], for Rows rows m and Images images k.
template <int Rows, int Images, class A, class W>
SE_INLINE void dense_tile(const W* w, const W* bias, std::int64_t columns, const A* in,
                          std::int64_t in_stride, A* out, std::int64_t out_stride) {
  constexpr std::int64_t lanes = kLanes<A>;
  Vec<A> sums[Rows][Images] = {};
  std::int64_t i = 0;
  for (; i + lanes <= columns; i += lanes) {
    Vec<A> v[Images];
#pragma GCC unroll 8
    for (int k = 0; k < Images; ++k) v[k] = load(Many<A>{}, in + k * in_stride + i);
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
      const Vec<A> weight = load(Many<A>{}, w + m * columns + i);
#pragma GCC unroll 8
      for (int k = 0; k < Images; ++k) sums[m][k] += weight * v[k];
    }
  }
  for (int m = 0; m < Rows; ++m) {
    for (int k = 0; k < Images; ++k) {
      A total = sum<A>(sums[m][k]);
      for (std::int64_t rest = i; rest < columns; ++rest)
        total += load(One<A>{}, w + m * columns + rest) * in[k * in_stride + rest];
      out[k * out_stride + m] = bias ? total + load(One<A>{}, bias + m) : total;
    }
  }
}

// out (images, M) in the columns rows.begin to rows.end; w (M, columns), in (images, columns).
template <class A, class W>
void dense(const W* w, const W* bias, Range rows, std::int64_t columns, std::int64_t images,
           const A* in, A* out, std::int64_t out_stride) {
  std::int64_t m = rows.begin;
  const auto tile = [&](auto row_count, std::int64_t at) {
    constexpr int count = decltype(row_count)::value;
    const W *w_at = w + at * columns, *bias_at = bias ? bias + at : nullptr;
    std::int64_t k = 0;
    for (; k + 4 <= images; k += 4)
      dense_tile<count, 4>(w_at, bias_at, columns, in + k * columns, columns,
                           out + k * out_stride + at, out_stride);
    for (; k < images; ++k)
      dense_tile<count, 1>(w_at, bias_at, columns, in + k * columns, columns,
                           out + k * out_stride + at, out_stride);
  };
  if (images < 4 || kVectorBytes == 64)  // as many sums as registers hold
    for (; m + 4 <= rows.end; m += 4) tile(Count<4>{}, m);
  for (; m + 2 <= rows.end; m += 2) tile(Count<2>{}, m);
  for (; m < rows.end; ++m) tile(Count<1>{}, m);
}

// A matrix read by element: at(k, m) = data[k * rows + m * columns].
template <class A>
struct Strided {
  const A* data;
  std::int64_t rows, columns;
};

// out[k][i] = Σ_m in(k, m) w[m][i], for Rows rows k and Vectors vectors of i (0: one column). Sums
// of 256 products, then their sum.
template <int Rows, int Vectors, class A, class W, class Out>
void product_tile(const W* w, std::int64_t w_stride, std::int64_t depth, Strided<A> in, Out* out,
                  std::int64_t out_stride) {
  using Tag = std::conditional_t<Vectors == 0, One<A>, Many<A>>;
  using V = typename Tag::type;
  constexpr int count = Vectors == 0 ? 1 : Vectors;
  constexpr std::int64_t block = 256;
  V totals[Rows][count] = {};
  for (std::int64_t begin = 0; begin < depth; begin += block) {
    const std::int64_t end = begin + block < depth ? begin + block : depth;
    V sums[Rows][count] = {};
    for (std::int64_t m = begin; m < end; ++m) {
      V v[count];
#pragma GCC unroll 8
      for (int i = 0; i < count; ++i) v[i] = load(Tag{}, w + m * w_stride + i * kLanes<A>);
#pragma GCC unroll 8
      for (int k = 0; k < Rows; ++k) {
        const A factor = in.data[k * in.rows + m * in.columns];
#pragma GCC unroll 8
        for (int i = 0; i < count; ++i) sums[k][i] += v[i] * factor;
      }
    }
    for (int k = 0; k < Rows; ++k)
      for (int i = 0; i < count; ++i) totals[k][i] += sums[k][i];
  }
  for (int k = 0; k < Rows; ++k)
    for (int i = 0; i < count; ++i)
      store(Tag{}, out + k * out_stride + i * kLanes<A>, totals[k][i]);
}

// out[k][i] = Σ_m in(k, m) w[m][i] for k in rows, i in columns and m below depth.
template <class A, class W, class Out>
void product(const W* w, std::int64_t w_stride, std::int64_t depth, Strided<A> in, Range rows,
             Range columns, Out* out, std::int64_t out_stride) {
  constexpr int kTall = kVectorBytes == 64 ? 4 : 2;  // as many sums as registers hold
  const auto tile = [&](auto height, auto width, std::int64_t k, std::int64_t i) {
    product_tile<height.value, width.value>(w + i, w_stride, depth,
                                            Strided<A>{in.data + k * in.rows, in.rows, in.columns},
                                            out + k * out_stride + i, out_stride);
  };
  const auto down = [&](auto width, std::int64_t i) {
    std::int64_t k = rows.begin;
    for (; k + kTall <= rows.end; k += kTall) tile(Count<kTall>{}, width, k, i);
    for (; k < rows.end; ++k) tile(Count<1>{}, width, k, i);
  };
  std::int64_t i = columns.begin;
  for (; i + 4 * kLanes<A> <= columns.end; i += 4 * kLanes<A>) down(Count<4>{}, i);
  for (; i + kLanes<A> <= columns.end; i += kLanes<A>) down(Count<1>{}, i);
  for (; i < columns.end; ++i) down(Count<0>{}, i);
}

// out[m] = Σ_n in[n][m] for m in columns.
template <class A, class Out>
void sum_over_images(const A* in, std::int64_t images, std::int64_t stride, Range columns,
                     Out* out) {
  for (std::int64_t m = columns.begin; m < columns.end; ++m) {
    double total = 0;
    for (std::int64_t n = 0; n < images; ++n) total += double(in[n * stride + m]);
    store(One<A>{}, out + m, A(total));
  }
}

// e^v to 1 ulp or so: v = n ln 2 + r, |r| <= ln 2 / 2, e^r by its Taylor polynomial.
SE_INLINE Vec<float> exp_of(Vec<float> v) {
  using Word = VectorOf<std::uint32_t, kLanes<float>>::type;
  v = select(v > 89.0f, Vec<float>{} + 89.0f, v);     // e^89 comes out as inf
  v = select(v < -87.0f, Vec<float>{} - 87.0f, v);    // NaN stays
  const Vec<float> magic = Vec<float>{} + 0x1.8p23f;  // adding it rounds to an integer
  const Vec<float> shifted = v * 0x1.715476p0f + magic, n = shifted - magic;
  const Vec<float> r = (v - n * 0x1.62e400p-1f) - n * 0x1.7f7d1cp-20f;
  Vec<float> e = Vec<float>{} + 1.0f / 5040;
  e = e * r + 1.0f / 720;
  e = e * r + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  const Word exponent = (bit_cast<Word>(shifted) - 0x4b400000u + 127u) << 23;
  return e * bit_cast<Vec<float>>(exponent);
}

template <class A>
SE_INLINE A sigmoid(A v) {
  return A(1) / (A(1) + std::exp(-v));
}

template <class A>
A activate(Act act, A slope, A a) {
  constexpr A kSqrtHalf = A(0.70710678118654752440), kSqrt2OverPi = A(0.79788456080286535588);
  switch (act) {
    case Act::relu:
      return relu(a);
    case Act::silu:
      return a * sigmoid(a);
    case Act::gelu:
      return A(0.5) * a * (A(1) + std::erf(a * kSqrtHalf));
    case Act::gelu_tanh:
      return A(0.5) * a * (A(1) + std::tanh(kSqrt2OverPi * (a + A(0.044715) * a * a * a)));
    case Act::hardswish:
      return a * clamp(a + A(3), A(6)) / A(6);
    case Act::leaky_relu:
      return a > 0 ? a : a * slope;
    case Act::identity:
      break;
  }
  return a;
}

// Where δ is flat and lets no gradient through.
template <class A>
bool is_closed(Act act, A a) {
  return (act == Act::relu && a <= 0) || (act == Act::hardswish && a <= A(-3));
}

// δ' where it is not closed.
template <class A>
A activate_backward(Act act, A slope, A a) {
  constexpr A kSqrtHalf = A(0.70710678118654752440), kSqrt2OverPi = A(0.79788456080286535588),
              kInvSqrt2Pi = A(0.39894228040143267794);
  switch (act) {
    case Act::relu:
      return A(1);
    case Act::silu: {
      const A open = sigmoid(a);
      return open * (A(1) + a * (A(1) - open));
    }
    case Act::gelu:
      return A(0.5) * (A(1) + std::erf(a * kSqrtHalf)) +
             a * kInvSqrt2Pi * std::exp(A(-0.5) * a * a);
    case Act::gelu_tanh: {
      const A inner = kSqrt2OverPi * (a + A(0.044715) * a * a * a), t = std::tanh(inner);
      return A(0.5) * (A(1) + t) +
             A(0.5) * a * (A(1) - t * t) * kSqrt2OverPi * (A(1) + A(3 * 0.044715) * a * a);
    }
    case Act::hardswish:
      return a >= A(3) ? A(1) : a / A(3) + A(0.5);  // NaN stays
    case Act::leaky_relu:
      return a > 0 ? A(1) : slope;
    case Act::identity:
      break;
  }
  return A(1);
}

// σ in place over e (n).
template <class A>
void open_gate(Gate gate, A* e, std::int64_t n) {
  std::int64_t i = 0;
  switch (gate) {
    case Gate::sigmoid:
      if constexpr (sizeof(A) == 4)
        for (; i + kLanes<A> <= n; i += kLanes<A>)
          store(Many<A>{}, e + i, 1.0f / (1.0f + exp_of(-load(Many<A>{}, e + i))));
      for (; i < n; ++i) e[i] = sigmoid(e[i]);
      break;
    case Gate::hardsigmoid:
      for (; i < n; ++i) e[i] = clamp(e[i] + A(3), A(6)) / A(6);
      break;
    case Gate::tanh:
      for (; i < n; ++i) e[i] = std::tanh(e[i]);
      break;
    case Gate::relu:
      for (; i < n; ++i) e[i] = relu(e[i]);
      break;
  }
}

// de = ds σ'(e), where σ' follows from s; in place over ds (n).
template <class A>
void close_gate(Gate gate, const A* s, A* ds, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const A v = s[i];
    switch (gate) {
      case Gate::sigmoid:
        ds[i] *= v * (A(1) - v);
        break;
      case Gate::hardsigmoid:
        ds[i] = v > 0 && v < 1 ? ds[i] / A(6) : A(0);  // 0 for NaN, as in eager
        break;
      case Gate::tanh:
        ds[i] *= A(1) - v * v;
        break;
      case Gate::relu:
        ds[i] = v <= 0 ? A(0) : ds[i];
        break;
    }
  }
}

}  // namespace se_kernels::SE_ISA
