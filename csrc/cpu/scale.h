// scale: equation 4 and the tail of Fig. 3, y = post(s x + residual), and its backward,
// g = dy post'(y), dr = g, ds = Σ g x.
#pragma once

#include "squeeze.h"

namespace se_kernels::SE_ISA {

template <bool Residual, bool Relu, class Tag, class X, class S>
SE_INLINE auto y_at(Tag tag, const X* x, const X* residual, S s) {
  auto y = load(tag, x) * s;
  if constexpr (Residual) y += load(tag, residual);
  if constexpr (Relu) y = relu(y);
  return y;
}

// y of the region.
template <class A, bool Residual, bool Relu, class X>
void scale(Layout layout, Image<const X> x, Image<const X> residual, Region region, const A* s,
           Image<X> y, bool streaming) {
  if (layout == Layout::nchw) {
    for (std::int64_t c = region.channels.begin; c < region.channels.end; ++c) {
      const X *x_row = x.channel(c), *residual_row = Residual ? residual.channel(c) : x_row;
      const A s_c = s[c];
      map_row<A>(y.channel(c), region.pixels.size(), streaming, [=](auto tag, std::int64_t i) {
        return y_at<Residual, Relu>(tag, x_row + i, residual_row + i, s_c);
      });
    }
    return;
  }
  for (std::int64_t p = region.pixels.begin; p < region.pixels.end; ++p) {
    const X *x_row = x.pixel(p), *residual_row = Residual ? residual.pixel(p) : x_row;
    map_row<A>(y.pixel(p), region.channels.size(), streaming, [=](auto tag, std::int64_t c) {
      return y_at<Residual, Relu>(tag, x_row + c, residual_row + c, load(tag, s + c));
    });
  }
}

// The largest elements so far and how many they are, at one place or in each lane.
template <class Tag, class V>
SE_INLINE void track_peak(Tag, V x, V& peak, V& ties) {
  const auto higher = (x > peak) | (x != x);
  const V one = V{} + typename Tag::A(1);
  ties = select(higher, one, ties + select(x == peak, one, V{}));
  peak = select(higher, x, peak);
}

// The larger of two peaks, with the ties of both where they are equal.
template <class A>
void merge_peak(A other_peak, A other_ties, A& peak, A& ties) {
  ties = other_peak == peak ? ties + other_ties
                            : (other_peak > peak || other_peak != other_peak ? other_ties : ties);
  peak = maximum(peak, other_peak);
}

template <class A, class X>
void peak_of_row(const X* x, std::int64_t n, A& peak, A& ties) {
  constexpr std::int64_t lanes = kLanes<A>;
  peak = -__builtin_inf(), ties = 0;
  std::int64_t i = 0;
  if (n >= lanes) {
    Vec<A> peaks = Vec<A>{} + peak, counts{};
    for (; i + lanes <= n; i += lanes) track_peak(Many<A>{}, load(Many<A>{}, x + i), peaks, counts);
    for (int lane = 0; lane < lanes; ++lane)
      merge_peak(A(peaks[lane]), A(counts[lane]), peak, ties);
  }
  for (; i < n; ++i) track_peak(One<A>{}, load(One<A>{}, x + i), peak, ties);
}

template <class A, class X>
void peak_of_columns(Image<const X> x, Region region, Part<A> part) {
  const Range channels = region.channels;
  for (std::int64_t c = 0; c < channels.end; ++c)
    part.peaks[c] = -__builtin_inf(), part.ties[c] = 0;
  for (std::int64_t p = region.pixels.begin; p < region.pixels.end; ++p) {
    const auto track = [&](auto tag, std::int64_t c) __attribute__((always_inline)) {
      auto peaks = load(tag, part.peaks + c), ties = load(tag, part.ties + c);
      track_peak(tag, load(tag, x.pixel(p) + c), peaks, ties);
      store(tag, part.peaks + c, peaks);
      store(tag, part.ties + c, ties);
    };
    std::int64_t c = 0;
    for (; c + kLanes<A> <= channels.end; c += kLanes<A>) track(Many<A>{}, c);
    for (; c < channels.end; ++c) track(One<A>{}, c);
  }
}

// nchw: ds of the region's channels, dr where Write; with Peaks, peak and ties of x as well.
template <class A, bool Relu, bool Write, bool Peaks, class X>
void scale_backward_rows(Image<const X> dy, Image<const X> y, Image<const X> x, Region region,
                         Image<X> dr, A* ds, A* peak, A* ties) {
  for (std::int64_t c = region.channels.begin; c < region.channels.end; ++c) {
    const X *dy_row = dy.channel(c), *x_row = x.channel(c), *y_row = Relu ? y.channel(c) : dy_row;
    X* dr_row = Write ? dr.channel(c) : nullptr;
    ds[c] = A(sum_row<A>(region.pixels.size(), [=](auto tag, std::int64_t i) {
      const auto g = post_backward<Relu>(tag, dy_row + i, y_row + i);
      if constexpr (Write) store(tag, dr_row + i, g);
      return g * load(tag, x_row + i);
    }));
    if constexpr (Peaks) peak_of_row(x_row, region.pixels.size(), peak[c], ties[c]);
  }
}

// nhwc: Σ g x over the region's pixels, dr where Write; with Peaks, peaks and ties of x as well;
// sums (C) is scratch.
template <class A, bool Relu, bool Write, bool Peaks, class X>
void scale_backward_columns(Image<const X> dy, Image<const X> y, Image<const X> x, Region region,
                            Image<X> dr, A* sums, Part<A> part) {
  const std::int64_t channels = region.channels.size();
  for (std::int64_t c = 0; c < channels; ++c) part.totals[c] = 0;
  sum_columns<A, 4>(region.pixels, channels, sums, part.totals,
                    [=](auto tag, std::int64_t p, std::int64_t c) {
                      const X* dy_at = dy.pixel(p) + c;
                      const auto g = post_backward<Relu>(tag, dy_at, Relu ? y.pixel(p) + c : dy_at);
                      if constexpr (Write) store(tag, dr.pixel(p) + c, g);
                      return g * load(tag, x.pixel(p) + c);
                    });
  if constexpr (Peaks) peak_of_columns(x, region, part);
}

// nhwc: ds, peak and ties of some channels from the parts of every thread.
template <class A>
void gather_scale_backward(Part<A> part, int threads, Range channels, bool peaks, A* ds, A* peak,
                           A* ties) {
  for (std::int64_t c = channels.begin; c < channels.end; ++c) {
    double total = 0;
    for (int t = 0; t < threads; ++t) total += part.of(t).totals[c];
    ds[c] = A(total);
    if (!peaks) continue;
    peak[c] = -__builtin_inf(), ties[c] = 0;
    for (int t = 0; t < threads; ++t)
      merge_peak(part.of(t).peaks[c], part.of(t).ties[c], peak[c], ties[c]);
  }
}

}  // namespace se_kernels::SE_ISA
