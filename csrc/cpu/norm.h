// norm: v = pre(t), t = (x - mean) scale + bias, before the phases of the block; the mask that says
// where the final ReLU is open.
#pragma once

#include "excite.h"
#include "plane.h"

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

// --- bits of a row: the i-th of it is bit i % 8 of byte i / 8
// -------------------------------------

// One bit a lane, the first the lowest.
SE_INLINE unsigned bits_of(One<float>, bool open) { return open; }
SE_INLINE unsigned bits_of(One<double>, bool open) { return open; }
template <class A>
SE_INLINE unsigned bits_of(Many<A>, MaskVec<A> open) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4)
    return _mm512_movepi32_mask(__m512i(open));
  else
    return _mm512_movepi64_mask(__m512i(open));
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4)
    return unsigned(_mm256_movemask_ps(__m256(open)));
  else
    return unsigned(_mm256_movemask_pd(__m256d(open)));
#else
  unsigned bits = 0;
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes<A>; ++lane) bits |= unsigned(open[lane] & 1) << lane;
  return bits;
#endif
}

// g where the bits from the i-th on are set, else 0; i is a multiple of the lanes.
template <class A>
SE_INLINE A where_open(One<A>, const std::uint8_t* row, std::int64_t i, A g) {
  return row[i / 8] >> (i % 8) & 1 ? g : A(0);
}
template <class A>
SE_INLINE Vec<A> where_open(Many<A>, const std::uint8_t* row, std::int64_t i, Vec<A> g) {
  using Word = MaskVec<A>;
  std::uint32_t bits = row[i / 8];
  if constexpr (kLanes<A> > 8)
    bits |= std::uint32_t(row[i / 8 + 1]) << 8;
  else
    bits >>= i % 8;
  Word place{};
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes<A>; ++lane) place[lane] = 1 << lane;
  const Word open = ((Word{} + typename Bits<A>::type(bits)) & place) != 0;
  return select(open, g, Vec<A>{});
}

template <class A, bool Masked, class Tag, class X>
SE_INLINE auto gradient_at(Tag tag, const X* dy, const std::uint8_t* mask, std::int64_t i) {
  const auto g = load(tag, dy + i);
  if constexpr (Masked)
    return where_open(tag, mask, i, g);
  else
    return g;
}

// The bits that say where f(tag, i) is open, for i in [0, n); put(tag, i, f(tag, i)) takes what
// they are of.
template <class A, class F, class Put>
SE_INLINE void mask_row(std::uint8_t* mask, std::int64_t n, F f, Put put) {
  constexpr std::int64_t lanes = kLanes<A>, block = lanes < 8 ? 8 : lanes;
  std::int64_t i = 0;
  for (; i + block <= n; i += block) {
    unsigned bits = 0;
#pragma GCC unroll 8
    for (std::int64_t j = 0; j < block; j += lanes) {
      const Vec<A> v = f(Many<A>{}, i + j);
      bits |= bits_of(Many<A>{}, ~(v <= Vec<A>{})) << j;
      put(Many<A>{}, i + j, v);
    }
    for (int byte = 0; byte < block / 8; ++byte)
      mask[i / 8 + byte] = std::uint8_t(bits >> 8 * byte);
  }
  for (; i < n; i += 8) {
    unsigned bits = 0;
    for (std::int64_t j = i; j < n && j < i + 8; ++j) {
      const A v = f(One<A>{}, j);
      bits |= unsigned(!(v <= 0)) << (j - i);
      put(One<A>{}, j, v);
    }
    mask[i / 8] = std::uint8_t(bits);
  }
}

// y[i] = relu(f(tag, i)) and its bit, for i in [0, n).
template <class A, class X, class F>
SE_INLINE void map_row_masked(X* y, std::uint8_t* mask, std::int64_t n, bool streaming, F f) {
  constexpr std::uintptr_t size = kLanes<A> * sizeof(X);
  if (streaming && reinterpret_cast<std::uintptr_t>(y) % size == 0)
    mask_row<A>(mask, n, f, [=](auto tag, std::int64_t i, auto v) {
      if constexpr (std::is_same_v<decltype(tag), Many<A>>)
        store_streaming(tag, y + i, relu(v));
      else
        store(tag, y + i, relu(v));
    });
  else
    mask_row<A>(mask, n, f, [=](auto tag, std::int64_t i, auto v) { store(tag, y + i, relu(v)); });
}

// out[i] = f(tag, i), each i once and vectors at multiples of the lanes.
template <class A, class X, class F>
SE_INLINE void map_row_aligned(X* out, std::int64_t n, bool streaming, F f) {
  constexpr std::int64_t lanes = kLanes<A>;
  constexpr std::uintptr_t size = lanes * sizeof(X);
  std::int64_t i = 0;
  if (streaming && reinterpret_cast<std::uintptr_t>(out) % size == 0)
    for (; i + lanes <= n; i += lanes) store_streaming(Many<A>{}, out + i, f(Many<A>{}, i));
  for (; i + lanes <= n; i += lanes) store(Many<A>{}, out + i, f(Many<A>{}, i));
  for (; i < n; ++i) store(One<A>{}, out + i, f(One<A>{}, i));
}

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
  const auto add_rows = [&](auto rows, std::int64_t p) __attribute__((always_inline)) {
    constexpr int count = decltype(rows)::value;
    const auto add = [&](auto tag, std::int64_t i) __attribute__((always_inline)) {
      auto terms = f(tag, p, i);
#pragma GCC unroll 8
      for (int row = 1; row < count; ++row) {
        const auto more = f(tag, p + row, i);
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) terms.of[k] += more.of[k];
      }
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k)
        store(tag, partial + k * n + i, load(tag, partial + k * n + i) + terms.of[k]);
    };
    std::int64_t i = 0;
    for (; i + lanes <= n; i += lanes) add(Many<A>{}, i);
    for (; i < n; ++i) add(One<A>{}, i);
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
