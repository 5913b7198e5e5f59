// scale: equation 4 and the tail of Fig. 3, y = post(s x + residual), and its backward,
// g = dy post'(y), dr = g, ds = Σ g x.
#pragma once

#include <limits>

#include "squeeze.h"

namespace se_kernels::SE_ISA {

// y[i] = post(f(tag, i)) for i in [0, n), and its bits with Keep, which goes with a ReLU; floor: 0
// for a ReLU, else -inf.
template <class A, bool Keep, class X, class F>
SE_INLINE void write_row(X* y, std::uint8_t* mask, std::int64_t n, A floor, bool streaming, F f) {
  if constexpr (Keep)
    map_row_masked<A>(y, mask, n, streaming, f);
  else
    map_row<A>(y, n, streaming, [=](auto tag, std::int64_t i) {
      using V = typename decltype(tag)::type;
      return at_least<V>(f(tag, i), V{} + floor);
    });
}

template <class A>
A floor_of(Post post) {
  return post == Post::relu ? A(0) : -std::numeric_limits<A>::infinity();
}

template <bool Residual, class Tag, class X, class S>
SE_INLINE auto sum_at(Tag tag, const X* x, const X* residual, S s) {
  auto y = load(tag, x) * s;
  if constexpr (Residual) y += load(tag, residual);
  return y;
}

// y of the region, and its mask with Keep.
template <class A, bool Residual, bool Keep, class X>
void scale(Layout layout, Post post, Image<const X> x, Image<const X> residual, Region region,
           const A* s, Image<X> y, MaskRows<std::uint8_t> mask, bool streaming) {
  const A floor = floor_of<A>(post);
  if (layout == Layout::nchw) {
    for (std::int64_t c = region.channels.begin; c < region.channels.end; ++c) {
      const X *x_row = x.channel(c), *residual_row = Residual ? residual.channel(c) : x_row;
      const A s_c = s[c];
      write_row<A, Keep>(y.channel(c), mask.row(c), region.pixels.size(), floor, streaming,
                         [=](auto tag, std::int64_t i) {
                           return sum_at<Residual>(tag, x_row + i, residual_row + i, s_c);
                         });
    }
    return;
  }
  for (std::int64_t p = region.pixels.begin; p < region.pixels.end; ++p) {
    const X *x_row = x.pixel(p), *residual_row = Residual ? residual.pixel(p) : x_row;
    write_row<A, Keep>(y.pixel(p), mask.row(p), region.channels.size(), floor, streaming,
                       [=](auto tag, std::int64_t c) {
                         return sum_at<Residual>(tag, x_row + c, residual_row + c,
                                                 load(tag, s + c));
                       });
  }
}

// nchw: ds of the region's channels, dr where Write; with peaks, peak and ties of x as well.
template <class A, bool Masked, bool Write, class X>
void scale_backward_rows(Image<const X> dy, MaskRows<const std::uint8_t> mask, Image<const X> x,
                         Region region, Image<X> dr, A* ds, bool peaks, A* peak, A* ties) {
  for (std::int64_t c = region.channels.begin; c < region.channels.end; ++c) {
    const X *dy_row = dy.channel(c), *x_row = x.channel(c);
    const std::uint8_t* bits = mask.row(c);
    X* dr_row = Write ? dr.channel(c) : nullptr;
    ds[c] = A(sum_row<A>(region.pixels.size(), [=](auto tag, std::int64_t i) {
      const auto g = gradient_at<A, Masked>(tag, dy_row, bits, i);
      if constexpr (Write) store(tag, dr_row + i, g);
      return g * load(tag, x_row + i);
    }));
    if (peaks) peak_of_row(x_row, region.pixels.size(), peak[c], ties[c]);
  }
}

// nhwc: Σ g x over the region's pixels, dr where Write; with peaks, peaks and ties of x as well;
// sums (C) is scratch.
template <class A, bool Masked, bool Write, class X>
void scale_backward_columns(Image<const X> dy, MaskRows<const std::uint8_t> mask, Image<const X> x,
                            Region region, Image<X> dr, A* sums, bool peaks, Part<A> part) {
  const std::int64_t channels = region.channels.size();
  for (std::int64_t c = 0; c < channels; ++c) part.totals[c] = 0;
  sum_columns<A, 4>(region.pixels, channels, sums, part.totals,
                    [=](auto tag, std::int64_t p, std::int64_t c) {
                      const auto g = gradient_at<A, Masked>(tag, dy.pixel(p), mask.row(p), c);
                      if constexpr (Write) store(tag, dr.pixel(p) + c, g);
                      return g * load(tag, x.pixel(p) + c);
                    });
  if (peaks) peak_of_columns(x, region, part);
}

// nhwc: ds of some channels from the parts of every thread.
template <class A>
void gather_scale_backward(Part<A> part, int threads, Range channels, A* ds) {
  for (std::int64_t c = channels.begin; c < channels.end; ++c) {
    double total = 0;
    for (int t = 0; t < threads; ++t) total += part.of(t).totals[c];
    ds[c] = A(total);
  }
}

}  // namespace se_kernels::SE_ISA
