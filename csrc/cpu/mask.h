// The mask that the final ReLU leaves for backward: one bit per element, set unless y <= 0. A row
// begins with a byte; its i-th bit is bit i % 8 of byte i / 8.
#pragma once

#include "plane.h"

namespace se_kernels::SE_ISA {

// The rows of one image: of P bits, one per channel (nchw), or of C bits, one per pixel (nhwc).
template <class Byte>
struct MaskRows {
  Byte* data;
  std::int64_t bytes;
  Byte* row(std::int64_t i) const { return data ? data + i * bytes : nullptr; }
};

template <class Byte>
MaskRows<Byte> mask_of_image(const Problem& p, Byte* mask, std::int64_t n) {
  const bool nchw = p.layout == Layout::nchw;
  const std::int64_t rows = nchw ? p.channels : p.pixels,
                     bytes = ((nchw ? p.pixels : p.channels) + 7) / 8;
  return {mask ? mask + n * rows * bytes : nullptr, bytes};
}

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
  streaming = streaming && reinterpret_cast<std::uintptr_t>(y) % size == 0;
  mask_row<A>(mask, n, f, [=](auto tag, std::int64_t i, auto v) {
    if constexpr (std::is_same_v<decltype(tag), Many<A>>)
      store_either<A>(y + i, relu(v), streaming);
    else
      store(tag, y + i, relu(v));
  });
}

// out[i] = f(tag, i), each i once and vectors at multiples of the lanes.
template <class A, class X, class F>
SE_INLINE void map_row_aligned(X* out, std::int64_t n, bool streaming, F f) {
  constexpr std::int64_t lanes = kLanes<A>;
  constexpr std::uintptr_t size = lanes * sizeof(X);
  std::int64_t i = 0;
  streaming = streaming && reinterpret_cast<std::uintptr_t>(out) % size == 0;
  for (; i + lanes <= n; i += lanes) store_either<A>(out + i, f(Many<A>{}, i), streaming);
  for (; i < n; ++i) store(One<A>{}, out + i, f(One<A>{}, i));
}

}  // namespace se_kernels::SE_ISA
