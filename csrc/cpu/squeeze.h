// squeeze: equation 2, x (C,P) to z (C), and its backward, dx = g s + dz / P.
#pragma once

#include "mask.h"

namespace se_kernels::SE_ISA {

// What a thread finds in its pixels of one nhwc image, each (C): Σ, and the largest elements with
// their number. Parts of one image lie `stride` apart, a thread after the other.
template <class A>
struct Part {
  double* totals;
  A *peaks, *ties;
  std::int64_t stride;
  Part of(int thread) const {
    return {totals + thread * stride, peaks + thread * stride, ties + thread * stride, stride};
  }
};

template <class A, class X>
A max_row(const X* x, std::int64_t n) {
  constexpr std::int64_t lanes = kLanes<A>;
  A peak = load(One<A>{}, x);
  std::int64_t i = 0;
  if (n >= lanes) {
    Vec<A> peaks = load(Many<A>{}, x);
    for (i = lanes; i + lanes <= n; i += lanes) peaks = maximum(peaks, load(Many<A>{}, x + i));
    for (int lane = 0; lane < lanes; ++lane) peak = maximum(peak, A(peaks[lane]));
  }
  for (; i < n; ++i) peak = maximum(peak, load(One<A>{}, x + i));
  return peak;
}

template <class A>
A squeezed(Squeeze kind, double total, A peak, std::int64_t pixels) {
  if (kind == Squeeze::max) return peak;
  const A mean = A(total / double(pixels));
  return kind == Squeeze::avg ? mean : A(0.5) * (mean + peak);
}

// nchw: z of the region's channels.
template <class A, class X>
void squeeze_rows(Image<const X> x, Region region, Squeeze kind, A* z) {
  const std::int64_t pixels = region.pixels.size();
  for (std::int64_t c = region.channels.begin; c < region.channels.end; ++c) {
    const X* row = x.channel(c);
    double total = 0;
    if (kind != Squeeze::max)
      total = sum_row<A>(pixels, [=](auto tag, std::int64_t i) { return load(tag, row + i); });
    const A peak = kind == Squeeze::avg ? A(0) : max_row<A>(row, pixels);
    z[c] = squeezed(kind, total, peak, pixels);
  }
}

// nhwc: totals and peaks over the region's pixels; sums (C) is scratch.
template <class A, class X>
void squeeze_columns(Image<const X> x, Region region, Squeeze kind, A* sums, Part<A> part) {
  const std::int64_t channels = region.channels.size();
  for (std::int64_t c = 0; c < channels; ++c) part.totals[c] = 0;
  if (kind != Squeeze::max)
    sum_columns<A, 8>(
        region.pixels, channels, sums, part.totals,
        [=](auto tag, std::int64_t p, std::int64_t c) { return load(tag, x.pixel(p) + c); });
  if (kind == Squeeze::avg) return;
  A* peaks = part.peaks;
  for (std::int64_t c = 0; c < channels; ++c) peaks[c] = -__builtin_inf();
  for (std::int64_t p = region.pixels.begin; p < region.pixels.end; ++p) {
    const X* row = x.pixel(p);
    map_row<A>(peaks, channels, false, [=](auto tag, std::int64_t c) {
      return maximum(load(tag, peaks + c), load(tag, row + c));
    });
  }
}

// nhwc: z of some channels from the parts of every thread.
template <class A>
void gather_squeeze(Part<A> part, int threads, Range channels, std::int64_t pixels, Squeeze kind,
                    A* z) {
  for (std::int64_t c = channels.begin; c < channels.end; ++c) {
    double total = 0;
    A peak = -__builtin_inf();
    for (int t = 0; t < threads; ++t) {
      total += part.of(t).totals[c];
      if (kind != Squeeze::avg) peak = maximum(peak, part.of(t).peaks[c]);
    }
    z[c] = squeezed(kind, total, peak, pixels);
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

// nhwc: peak and ties of some channels from the parts of every thread.
template <class A>
void gather_peaks(Part<A> part, int threads, Range channels, A* peak, A* ties) {
  for (std::int64_t c = channels.begin; c < channels.end; ++c) {
    peak[c] = -__builtin_inf(), ties[c] = 0;
    for (int t = 0; t < threads; ++t)
      merge_peak(part.of(t).peaks[c], part.of(t).ties[c], peak[c], ties[c]);
  }
}

// Per channel, what the gradient of the squeeze adds: dx = g s + mean + (x == peak ? share : 0).
template <class A>
struct SqueezeGradient {
  const A *mean, *peak, *share;  // (C); peak and share count only where the squeeze takes a maximum
};

template <bool Scaled, bool Masked, bool Peaks, class Tag, class X, class S>
SE_INLINE auto dx_at(Tag tag, const X* dy, const std::uint8_t* mask, const X* x, std::int64_t i,
                     S s, S mean, S peak, S share) {
  using V = typename Tag::type;
  V dx = V{} + mean;
  if constexpr (Scaled) dx = gradient_at<typename Tag::A, Masked>(tag, dy, mask, i) * s + mean;
  // a product, as in eager: an infinite share makes NaN of the elements that have none
  if constexpr (Peaks)
    dx += select(load(tag, x + i) == peak, V{} + typename Tag::A(1), V{}) * share;
  return dx;
}

// out[i] = f(tag, i) for i in [0, n), with vectors at multiples of the lanes where bits are read.
template <class A, bool Masked, class X, class F>
SE_INLINE void map_row_where(X* out, std::int64_t n, bool streaming, F f) {
  if constexpr (Masked)
    map_row_aligned<A>(out, n, streaming, f);
  else
    map_row<A>(out, n, streaming, f);
}

// dx of the region; dy and s are read only where Scaled, mask only where Masked, x only where
// Peaks.
template <class A, bool Scaled, bool Masked, bool Peaks, class X>
void squeeze_backward(Layout layout, Image<const X> dy, MaskRows<const std::uint8_t> mask,
                      Image<const X> x, Region region, const A* s, SqueezeGradient<A> d,
                      Image<X> dx, bool streaming) {
  if (layout == Layout::nchw) {
    for (std::int64_t c = region.channels.begin; c < region.channels.end; ++c) {
      const X *dy_row = dy.channel(c), *x_row = Peaks ? x.channel(c) : dy_row;
      const std::uint8_t* bits = mask.row(c);
      const A scale = Scaled ? s[c] : A(0), mean = d.mean[c], peak = Peaks ? d.peak[c] : A(0),
              share = Peaks ? d.share[c] : A(0);
      map_row_where<A, Masked>(dx.channel(c), region.pixels.size(), streaming,
                               [=](auto tag, std::int64_t i) {
                                 return dx_at<Scaled, Masked, Peaks>(tag, dy_row, bits, x_row, i,
                                                                     scale, mean, peak, share);
                               });
    }
    return;
  }
  for (std::int64_t p = region.pixels.begin; p < region.pixels.end; ++p) {
    const X *dy_row = dy.pixel(p), *x_row = Peaks ? x.pixel(p) : dy_row;
    const std::uint8_t* bits = mask.row(p);
    const std::int64_t channels = region.channels.size();
    map_row_where<A, Masked>(dx.pixel(p), channels, streaming, [=](auto tag, std::int64_t c) {
      const auto mean = load(tag, d.mean + c), scale = Scaled ? load(tag, s + c) : mean;
      const auto peak = Peaks ? load(tag, d.peak + c) : mean;
      const auto share = Peaks ? load(tag, d.share + c) : mean;
      return dx_at<Scaled, Masked, Peaks>(tag, dy_row, bits, x_row, c, scale, mean, peak, share);
    });
  }
}

}  // namespace se_kernels::SE_ISA
