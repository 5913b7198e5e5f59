// The part of one image that one thread works on, and the loops over it. nchw walks channel by
// channel (rows of P pixels), nhwc pixel by pixel (rows of channels).
#pragma once

#include "../api.h"
#include "vector.h"

namespace se_kernels::SE_ISA {

struct Range {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
};

// A thread's part of an image: some channels of all pixels (nchw), or all of some pixels (nhwc).
struct Region {
  Range channels, pixels;
};

// One image (C,P) of a tensor of X.
template <class X>
struct Image {
  X* data;
  std::int64_t channel_stride, pixel_stride;
  X* channel(std::int64_t c) const { return data + c * channel_stride; }
  X* pixel(std::int64_t p) const { return data + p * pixel_stride; }
  explicit operator bool() const { return data != nullptr; }
};

template <class X>
Image<const X> image(const Input& t, std::int64_t n) {
  const X* data = static_cast<const X*>(t.data);
  return {data ? data + n * t.image_stride : nullptr, t.channel_stride, t.pixel_stride};
}
template <class X>
Image<X> image(const Output& t, std::int64_t n) {
  X* data = static_cast<X*>(t.data);
  return {data ? data + n * t.image_stride : nullptr, t.channel_stride, t.pixel_stride};
}

// v to out[0], past the caches if streaming, which needs an aligned out.
template <class A, class X>
SE_INLINE void store_either(X* out, Vec<A> v, bool streaming) {
  streaming ? store_streaming(Many<A>{}, out, v) : store(Many<A>{}, out, v);
}

// The loops below inline f a few times each, and it is most of what is compiled: no more often
// than it pays.

// out[i] = f(tag, i) for i in [0, n). An element may be computed twice, with the same result.
template <class A, class X, class F>
SE_INLINE void map_row(X* out, std::int64_t n, bool streaming, F f) {
  constexpr std::int64_t lanes = kLanes<A>;
  const std::int64_t last = n - lanes;
  if (last < 0) {
    for (std::int64_t i = 0; i < n; ++i) store(One<A>{}, out + i, f(One<A>{}, i));
    return;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(out);
  streaming = streaming && address % sizeof(X) == 0;
  std::int64_t i = streaming ? std::int64_t(-address / sizeof(X) % lanes) : 0;
  if (i > 0) store(Many<A>{}, out, f(Many<A>{}, 0));  // overlaps the next one
  for (; i <= last; i += lanes) store_either<A>(out + i, f(Many<A>{}, i), streaming);
  if (i < n) store(Many<A>{}, out + last, f(Many<A>{}, last));
}

// Σ f(tag, i) for i in [0, n). Sums of 128 vectors in A, their sum in double.
template <class A, class F>
SE_INLINE double sum_row(std::int64_t n, F f) {
  constexpr std::int64_t lanes = kLanes<A>, chunk = 128 * lanes;
  double total = 0;
  std::int64_t i = 0;
  while (i + lanes <= n) {
    Vec<A> t0{}, t1{}, t2{}, t3{};
    const std::int64_t end = i + chunk < n ? i + chunk : n;
    for (; i + 4 * lanes <= end; i += 4 * lanes) {
      t0 += f(Many<A>{}, i);
      t1 += f(Many<A>{}, i + lanes);
      t2 += f(Many<A>{}, i + 2 * lanes);
      t3 += f(Many<A>{}, i + 3 * lanes);
    }
    for (; i + lanes <= end; i += lanes) t0 += f(Many<A>{}, i);
    total += double(sum<A>((t0 + t1) + (t2 + t3)));
  }
  A rest = 0;
  for (; i < n; ++i) rest += f(One<A>{}, i);
  return total + double(rest);
}

template <bool B>
struct Flag {
  static constexpr bool value = B;
};

// f(Flag<true>) or f(Flag<false>).
template <class F>
void with_flag(bool value, F f) {
  value ? f(Flag<true>{}) : f(Flag<false>{});
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// totals[i] += f(tag, p, i) summed over p in pixels, for i in [0, n). Sums of 256 pixels in
// partial (n numbers of A, scratch), their sum in double. Rows: pixels read side by side.
template <class A, int Rows, class F>
SE_INLINE void sum_columns(Range pixels, std::int64_t n, A* partial, double* totals, F f) {
  constexpr std::int64_t lanes = kLanes<A>, chunk = 256;
  const auto add = [&](auto tag, auto rows, std::int64_t p, std::int64_t i)
                       __attribute__((always_inline)) {
                         auto total = f(tag, p, i);
#pragma GCC unroll 8
                         for (int row = 1; row < rows.value; ++row) total += f(tag, p + row, i);
                         store(tag, partial + i, load(tag, partial + i) + total);
                       };
  const auto add_rows = [&](auto rows, std::int64_t p) __attribute__((always_inline)) {
    std::int64_t i = 0;
    for (; i + lanes <= n; i += lanes) add(Many<A>{}, rows, p, i);
    for (; i < n; ++i)
      for (int row = 0; row < rows.value; ++row) add(One<A>{}, Count<1>{}, p + row, i);
  };
  for (std::int64_t begin = pixels.begin; begin < pixels.end; begin += chunk) {
    const std::int64_t end = begin + chunk < pixels.end ? begin + chunk : pixels.end;
    for (std::int64_t i = 0; i < n; ++i) partial[i] = 0;
    std::int64_t p = begin;
    for (; p + Rows <= end; p += Rows) add_rows(Count<Rows>{}, p);
    for (; p < end; ++p) add_rows(Count<1>{}, p);
    for (std::int64_t i = 0; i < n; ++i) totals[i] += double(partial[i]);
  }
}

}  // namespace se_kernels::SE_ISA
