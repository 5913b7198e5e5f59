// norm: v = pre(t), t = (x - mean) scale + bias, before the phases of the block.
#pragma once

#include "excite.h"
#include "mask.h"

namespace se_kernels::SE_ISA {

// --- pre and its derivative, at one place or in each lane ---------------------------------------

SE_INLINE Vec<float> exp_any(Vec<float> v) { return exp_of(v); }
SE_INLINE float exp_any(float v) { return exp_of(Vec<float>{} + v)[0]; }  // as in a vector
SE_INLINE double exp_any(double v) { return std::exp(v); }
SE_INLINE Vec<double> exp_any(Vec<double> v) {
  for (int lane = 0; lane < kLanes<double>; ++lane) v[lane] = std::exp(v[lane]);
  return v;
}

template <class Tag, class V>
SE_INLINE V constant(Tag, V, double value) {
  return V{} + typename Tag::A(value);
}

// pre(t)
template <bool Active, class Tag, class V>
SE_INLINE V activated(Tag tag, Pre pre, V t) {
  if constexpr (Active) {
    const V one = constant(tag, t, 1), three = constant(tag, t, 3), six = constant(tag, t, 6);
    if (pre == Pre::relu) return relu(t);
    if (pre == Pre::silu) return t / (one + exp_any(-t));
    if (pre == Pre::hardswish) return t * clamp(t + three, six) / six;
  }
  return t;
}

// g pre'(t); 0 where pre is closed, whatever g.
template <bool Active, class Tag, class V>
SE_INLINE V activated_backward(Tag tag, Pre pre, V t, V g) {
  if constexpr (Active) {
    const V zero{}, one = constant(tag, t, 1), three = constant(tag, t, 3),
                    half = constant(tag, t, 0.5);
    if (pre == Pre::relu) return select(t <= zero, zero, g);
    if (pre == Pre::silu) {
      const V open = one / (one + exp_any(-t));
      return g * (open * (one + t * (one - open)));
    }
    if (pre == Pre::hardswish)
      return select(t <= -three, zero, g * select(t >= three, one, t / three + half));  // NaN stays
  }
  return g;
}

// --- the norm's numbers of one channel, or of the lanes' channels -------------------------------

template <class V>
struct NormAt {
  V mean, scale, bias;
  Pre pre;

  template <class T>
  SE_INLINE T centred(T x) const {
    return x - mean;
  }
  template <class T>
  SE_INLINE T normed(T x) const {
    return (x - mean) * scale + bias;
  }
};

// (C) each.
template <class A>
struct NormOf {
  const A *mean, *scale, *bias;
  Pre pre;

  explicit NormOf(const Norm& norm)
      : mean(static_cast<const A*>(norm.mean)),
        scale(static_cast<const A*>(norm.scale)),
        bias(static_cast<const A*>(norm.bias)),
        pre(norm.pre) {}
  template <class Tag>
  SE_INLINE auto at(Tag tag, std::int64_t c) const {
    using V = typename Tag::type;
    return NormAt<V>{load(tag, mean + c), load(tag, scale + c), load(tag, bias + c), pre};
  }
};

// --- several sums at once ------------------------------------------------------------------------

// What an element adds to each of K sums.
template <class V, int K>
struct Terms {
  V of[K];
};

// totals[k] += Σ_i f(tag, i).of[k] for i in [0, n). Sums of 128 vectors in A, theirs in double.
template <class A, int K, class F>
SE_INLINE void sum_row_terms(std::int64_t n, double* totals, F f) {
  constexpr std::int64_t lanes = kLanes<A>, chunk = 128 * lanes;
  std::int64_t i = 0;
  while (i + lanes <= n) {
    Vec<A> even[K] = {}, odd[K] = {};
    const std::int64_t end = i + chunk < n ? i + chunk : n;
    for (; i + 2 * lanes <= end; i += 2 * lanes) {
      const auto a = f(Many<A>{}, i), b = f(Many<A>{}, i + lanes);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) even[k] += a.of[k], odd[k] += b.of[k];
    }
    for (; i + lanes <= end; i += lanes) {
      const auto a = f(Many<A>{}, i);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) even[k] += a.of[k];
    }
    for (int k = 0; k < K; ++k) totals[k] += double(sum<A>(even[k] + odd[k]));
  }
  for (; i < n; ++i) {
    const auto a = f(One<A>{}, i);
    for (int k = 0; k < K; ++k) totals[k] += double(a.of[k]);
  }
}

// totals[k n + i] += Σ_p f(tag, p, i).of[k] over p in pixels, for i in [0, n). Sums of 256 pixels
// in partial (K n numbers of A, scratch), theirs in double. Rows: pixels read side by side.
template <class A, int K, int Rows, class F>
SE_INLINE void sum_columns_terms(Range pixels, std::int64_t n, A* partial, double* totals, F f) {
  constexpr std::int64_t lanes = kLanes<A>, chunk = 256;
  const auto add = [&](auto tag, auto rows, std::int64_t p,
                       std::int64_t i) __attribute__((always_inline)) {
    auto terms = f(tag, p, i);
#pragma GCC unroll 8
    for (int row = 1; row < rows.value; ++row) {
      const auto more = f(tag, p + row, i);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) terms.of[k] += more.of[k];
    }
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k)
      store(tag, partial + k * n + i, load(tag, partial + k * n + i) + terms.of[k]);
  };
  const auto add_rows = [&](auto rows, std::int64_t p) __attribute__((always_inline)) {
    std::int64_t i = 0;
    for (; i + lanes <= n; i += lanes) add(Many<A>{}, rows, p, i);
    for (; i < n; ++i)
      for (int row = 0; row < rows.value; ++row) add(One<A>{}, Count<1>{}, p + row, i);
  };
  for (std::int64_t begin = pixels.begin; begin < pixels.end; begin += chunk) {
    const std::int64_t end = begin + chunk < pixels.end ? begin + chunk : pixels.end;
    for (std::int64_t i = 0; i < K * n; ++i) partial[i] = 0;
    std::int64_t p = begin;
    for (; p + Rows <= end; p += Rows) add_rows(Count<Rows>{}, p);
    for (; p < end; ++p) add_rows(Count<1>{}, p);
    for (std::int64_t i = 0; i < K * n; ++i) totals[i] += double(partial[i]);
  }
}

}  // namespace se_kernels::SE_ISA
