// Vectors of the compute type A (float or double), as wide as the instruction set of this build,
// and conversions from and to the storage type X. Every access goes through memcpy or an unaligned
// intrinsic: no pointer is assumed to be aligned.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define SE_INLINE inline __attribute__((always_inline))
// Long and rare: inlined into every loop, it would be most of what is compiled.
#define SE_APART inline __attribute__((noinline))
#if defined(__F16C__)
#define SE_HALF SE_INLINE
#else
#define SE_HALF SE_APART
#endif

namespace se_kernels::SE_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

template <class T, int Lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Lanes * sizeof(T))));
};

template <class A>
inline constexpr int kLanes = kVectorBytes / int(sizeof(A));
template <class A>
using Vec = typename VectorOf<A, kLanes<A>>::type;

template <class T>
struct Bits;
template <>
struct Bits<float> {
  using type = std::int32_t;
};
template <>
struct Bits<double> {
  using type = std::int64_t;
};
template <class A>
using MaskVec = typename VectorOf<typename Bits<A>::type, kLanes<A>>::type;

template <class To, class From>
SE_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// --- one element -------------------------------------------------------------------------------

SE_INLINE float widen(float v) { return v; }
SE_INLINE double widen(double v) { return v; }
SE_INLINE float widen(BFloat16 v) { return bit_cast<float>(std::uint32_t(v.bits) << 16); }

SE_HALF float widen(Float16 v) {
#if defined(__F16C__)
  return _cvtsh_ss(v.bits);
#else
  const std::uint32_t sign = std::uint32_t(v.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u)  // inf, NaN
    return bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // 2^112 rebiases the exponent, and normalises subnormals
  const float value = bit_cast<float>(magnitude << 13) * 0x1p112f;
  return bit_cast<float>(sign | bit_cast<std::uint32_t>(value));
#endif
}

template <class X>
X narrow(float v);
template <>
SE_INLINE float narrow<float>(float v) {
  return v;
}
template <>
SE_INLINE BFloat16 narrow<BFloat16>(float v) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(v);
  if (v != v) return {0x7fc0};
  return {std::uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};  // nearest, ties to even
}
template <>
SE_HALF Float16 narrow<Float16>(float v) {
#if defined(__F16C__)
  return {std::uint16_t(_cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT))};
#else
  const std::uint32_t bits = bit_cast<std::uint32_t>(v);
  const std::uint16_t sign = std::uint16_t((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {std::uint16_t(sign | 0x7e00u)};   // NaN
  if (magnitude >= 0x477ff000u) return {std::uint16_t(sign | 0x7c00u)};  // rounds to inf
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds at 2^-24, the last place of half
    const float rounded = bit_cast<float>(magnitude) + 0.5f;
    return {std::uint16_t(sign | (bit_cast<std::uint32_t>(rounded) - 0x3f000000u))};
  }
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  return {std::uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
#endif
}

// --- loads and stores of one element or one vector, by tag ---------------------------------------

template <class A_>
struct One {
  using A = A_;
  using type = A;
  using mask = bool;
};
template <class A_>
struct Many {
  using A = A_;
  using type = Vec<A>;
  using mask = MaskVec<A>;
};

template <class A, class X>
SE_INLINE A load(One<A>, const X* p) {
  X x;
  std::memcpy(&x, p, sizeof(X));
  return A(widen(x));
}

template <class X, class A>
SE_INLINE void store(One<A>, X* p, A v) {
  X x;
  if constexpr (sizeof(X) == 8)
    x = v;
  else
    x = narrow<X>(float(v));
  std::memcpy(p, &x, sizeof(X));
}

template <class V>
SE_INLINE V load_raw(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

SE_INLINE Vec<float> load(Many<float>, const float* p) { return load_raw<Vec<float>>(p); }
SE_INLINE Vec<double> load(Many<double>, const double* p) { return load_raw<Vec<double>>(p); }

SE_INLINE Vec<float> load(Many<float>, const BFloat16* p) {
  using Narrow = VectorOf<std::uint16_t, kLanes<float>>::type;
  using Wide = VectorOf<std::uint32_t, kLanes<float>>::type;
  return bit_cast<Vec<float>>(__builtin_convertvector(load_raw<Narrow>(p), Wide) << 16);
}

SE_HALF Vec<float> load(Many<float>, const Float16* p) {
#if defined(__AVX512F__)
  return Vec<float>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__) && defined(__F16C__)
  return Vec<float>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  Vec<float> v{};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<float>; ++i) v[i] = load(One<float>{}, p + i);
  return v;
#endif
}

SE_INLINE Vec<double> load(Many<double>, const float* p) {
  using Half = VectorOf<float, kLanes<double>>::type;
  return __builtin_convertvector(load_raw<Half>(p), Vec<double>);
}

// 16-bit storage summed in double: only where the weights are double
template <class X, std::enable_if_t<sizeof(X) == 2, int> = 0>
SE_APART Vec<double> load(Many<double>, const X* p) {
  Vec<double> v{};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<double>; ++i) v[i] = load(One<double>{}, p + i);
  return v;
}

// A vector as it is stored: X in memory, A in registers.
SE_INLINE Vec<float> pack(const float*, Vec<float> v) { return v; }
SE_INLINE Vec<double> pack(const double*, Vec<double> v) { return v; }

SE_INLINE auto pack(const BFloat16*, Vec<float> v) {
  using Narrow = VectorOf<std::uint16_t, kLanes<float>>::type;
  using Wide = VectorOf<std::uint32_t, kLanes<float>>::type;
  const Wide bits = bit_cast<Wide>(v);
  const Wide rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Wide nan = bit_cast<Wide>(v != v);
  return __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), Narrow);
}

SE_HALF auto pack(const Float16*, Vec<float> v) {
#if defined(__AVX512F__)
  return _mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__) && defined(__F16C__)
  return _mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT);
#else
  typename VectorOf<std::uint16_t, kLanes<float>>::type packed{};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<float>; ++i) packed[i] = narrow<Float16>(v[i]).bits;
  return packed;
#endif
}

SE_INLINE auto pack(const float*, Vec<double> v) {
  return __builtin_convertvector(v, VectorOf<float, kLanes<double>>::type);
}

template <class X, std::enable_if_t<sizeof(X) == 2, int> = 0>
SE_APART auto pack(const X*, Vec<double> v) {
  typename VectorOf<std::uint16_t, kLanes<double>>::type packed{};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<double>; ++i) packed[i] = narrow<X>(float(v[i])).bits;
  return packed;
}

template <class X, class A>
SE_INLINE void store(Many<A>, X* p, Vec<A> v) {
  const auto packed = pack(p, v);
  std::memcpy(p, &packed, sizeof(packed));
}

// The same past the caches; p is aligned to the packed vector's size.
template <class X, class A>
SE_INLINE void store_streaming(Many<A> tag, X* p, Vec<A> v) {
#if defined(__x86_64__)
  const auto packed = pack(p, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(packed) == 64)
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bit_cast<__m512i>(packed));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(packed) == 32)
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(packed));
#endif
  if constexpr (sizeof(packed) == 16)
    return _mm_stream_si128(reinterpret_cast<__m128i*>(p), bit_cast<__m128i>(packed));
#endif
  store(tag, p, v);
}

SE_INLINE void fence_streaming_stores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// --- arithmetic that is not an operator; NaN goes through as in eager
// -----------------------------

template <class A>
SE_INLINE A select(bool condition, A yes, A no) {
  return condition ? yes : no;
}
template <class M, class V>
SE_INLINE V select(M condition, V yes, V no) {
  return condition ? yes : no;
}

// v, or floor where it is below
template <class V>
SE_INLINE V at_least(V v, V floor) {
  return select(v < floor, floor, v);
}

template <class V>
SE_INLINE V relu(V v) {
  return at_least(v, V{});
}

// v clamped to [0, high]
template <class V>
SE_INLINE V clamp(V v, V high) {
  return select(v > high, high, relu(v));
}

// the larger, or NaN where either is
template <class V>
SE_INLINE V maximum(V m, V v) {
  return select((v > m) | (v != v), v, m);
}

template <class T, int Lanes>
SE_INLINE T sum_lanes(typename VectorOf<T, Lanes>::type v) {
  if constexpr (Lanes == 2) {
    return v[0] + v[1];
  } else {
    using Half = typename VectorOf<T, Lanes / 2>::type;
    struct Halves {
      Half low, high;
    };
    const auto halves = bit_cast<Halves>(v);
    return sum_lanes<T, Lanes / 2>(halves.low + halves.high);
  }
}
template <class A>
SE_INLINE A sum(Vec<A> v) {
  return sum_lanes<A, kLanes<A>>(v);
}

}  // namespace se_kernels::SE_ISA
