// The phases of one group of images, by the team that shares it: squeeze and scale, forward and
// backward, in either layout, and the excitation between them.
#pragma once

#include "excite.h"
#include "scale.h"
#include "share.h"
#include "types.h"

namespace se_kernels::SE_ISA {

// The parts of the k-th image of the group that share's team works on.
template <class A>
Part<A> part_of(const Scratch& scratch, const Plan& plan, const Problem& p, const Share& share,
                std::int64_t k) {
  const std::int64_t stride = plan.group * p.channels,
                     at = share.first_thread * stride + k * p.channels;
  return {static_cast<double*>(scratch.totals) + at, static_cast<A*>(scratch.peaks) + at,
          static_cast<A*>(scratch.ties) + at, stride};
}

template <class A>
A* sums_of(const Scratch& scratch, const Problem& p, const Share& share) {
  return static_cast<A*>(scratch.sums) + share.thread * p.channels;
}

// z (N,C) of the group.
template <class A, class X>
void squeeze_group(const Problem& p, const Plan& plan, const Scratch& scratch, const Share& share,
                   const Input& x, A* z) {
  const std::int64_t first = share.images.begin, C = p.channels;
  const bool rows = p.layout == Layout::nchw;
  for (std::int64_t n = first; n < share.images.end; ++n) {
    const Part<A> part = part_of<A>(scratch, plan, p, share, n - first);
    if (rows)
      squeeze_rows(image<X>(x, n), share.region, p.squeeze, z + n * C);
    else
      squeeze_columns(image<X>(x, n), share.region, p.squeeze, sums_of<A>(scratch, p, share),
                      part.of(share.thread - share.first_thread));
  }
  if (rows) return;
  share.wait();
  for (std::int64_t n = first; n < share.images.end; ++n)
    gather_squeeze(part_of<A>(scratch, plan, p, share, n - first), share.threads, share.channels,
                   p.pixels, p.squeeze, z + n * C);
}

struct Weights {
  const void *w1, *w2, *b1, *b2;
};

// s (N,C) and a (N,R) of a group from z (N,C): h (N,R) is scratch.
template <class A>
void excite(const Problem& p, const Weights& f, const Share& share, const A* z, A* a, A* h, A* s) {
  const std::int64_t count = share.images.size();
  with_weights<A>(p.w_type, [&](auto type) {
    using W = typename decltype(type)::type;
    dense(static_cast<const W*>(f.w1), static_cast<const W*>(f.b1), share.reduced, p.channels,
          count, z, a, p.reduced);
    for (std::int64_t k = 0; k < count; ++k)
      for (std::int64_t j = share.reduced.begin; j < share.reduced.end; ++j)
        h[k * p.reduced + j] = activate(p.act, A(p.act_slope), a[k * p.reduced + j]);
    share.wait();
    dense(static_cast<const W*>(f.w2), static_cast<const W*>(f.b2), share.channels, p.reduced,
          count, h, s, p.channels);
    for (std::int64_t k = 0; k < count; ++k)
      open_gate(p.gate, s + k * p.channels + share.channels.begin, share.channels.size());
  });
}

// What the excitation's backward works on, whole batch.
template <class A>
struct Excited {
  const A *z, *a, *s;
  A *de, *da, *h;  // (N,C), (N,R), (N,R)
  A* dz;           // (N,C); null where it is not wanted
};

// da (N,R), h (N,R) and dz (N,C) of a group from ds, which becomes de (N,C).
template <class A>
void excite_backward(const Problem& p, const Weights& f, const Share& share, const Excited<A>& d) {
  const std::int64_t C = p.channels, R = p.reduced, first = share.images.begin,
                     count = share.images.size();
  for (std::int64_t n = first; n < share.images.end; ++n) {
    const std::int64_t at = n * C + share.channels.begin;
    close_gate(p.gate, d.s + at, d.de + at, share.channels.size());
  }
  share.wait();
  with_weights<A>(p.w_type, [&](auto type) {
    using W = typename decltype(type)::type;
    product(static_cast<const W*>(f.w2), R, C, Strided<A>{d.de + first * C, C, 1}, {0, count},
            share.reduced, d.da + first * R, R);
    for (std::int64_t n = first; n < share.images.end; ++n)
      for (std::int64_t at = n * R + share.reduced.begin; at < n * R + share.reduced.end; ++at) {
        // a closed unit stops even an infinite gradient
        d.da[at] = is_closed(p.act, d.a[at])
                       ? A(0)
                       : d.da[at] * activate_backward(p.act, A(p.act_slope), d.a[at]);
        d.h[at] = activate(p.act, A(p.act_slope), d.a[at]);
      }
    if (!d.dz) return;
    share.wait();
    product(static_cast<const W*>(f.w1), C, R, Strided<A>{d.da + first * R, R, 1}, {0, count},
            share.channels, d.dz + first * C, C);
  });
}

// Each of these may be null.
struct WeightGradients {
  void *dw1, *dw2, *db1, *db2;
};

// dW2 = Σ_n de hᵀ, db2 = Σ_n de, dW1 = Σ_n da zᵀ, db1 = Σ_n da: a thread's share of the rows.
template <class A>
void weight_gradients(const Problem& p, const WeightGradients& to, Range channels, Range reduced,
                      const Excited<A>& d) {
  const std::int64_t C = p.channels, R = p.reduced, N = p.images;
  with_weights<A>(p.w_type, [&](auto type) {
    using W = typename decltype(type)::type;
    if (to.dw2)
      product(d.h, R, N, Strided<A>{d.de, 1, C}, channels, {0, R}, static_cast<W*>(to.dw2), R);
    if (to.dw1)
      product(d.z, C, N, Strided<A>{d.da, 1, R}, reduced, {0, C}, static_cast<W*>(to.dw1), C);
    if (to.db2) sum_over_images(d.de, N, C, channels, static_cast<W*>(to.db2));
    if (to.db1) sum_over_images(d.da, N, R, reduced, static_cast<W*>(to.db1));
  });
}

// y of the group from s (N,C).
template <class A, class X>
void scale_group(const Problem& p, const Plan& plan, const Share& share, const Input& x,
                 const Input& residual, const A* s, const Output& y, std::uint8_t* mask) {
  for (std::int64_t n = share.images.begin; n < share.images.end; ++n) {
    const auto run = [&](auto add, auto keep) {
      scale<A, add.value, keep.value>(p.layout, p.post, image<X>(x, n), image<X>(residual, n),
                                      share.region, s + n * p.channels, image<X>(y, n),
                                      mask_of_image(p, mask, n), plan.streaming);
    };
    with_flag(residual.data != nullptr,
              [&](auto add) { with_flag(mask != nullptr, [&](auto keep) { run(add, keep); }); });
  }
}

// What the first pass of backward leaves for each channel, (N,C): ds, and the largest elements of x
// with their number, where the squeeze takes a maximum.
template <class A>
struct Reduced {
  A *ds, *peak, *ties;
};

// ds of the group, with peak and ties for a maximum; dr = g where dr is wanted.
template <class A, class X>
void scale_backward_group(const Problem& p, const Plan& plan, const Scratch& scratch,
                          const Share& share, const Input& x, const Input& dy,
                          const std::uint8_t* mask, const Output& dr, Reduced<A> to) {
  const std::int64_t first = share.images.begin, C = p.channels;
  const bool peaks = p.squeeze != Squeeze::avg, rows = p.layout == Layout::nchw;
  for (std::int64_t n = first; n < share.images.end; ++n) {
    const Image<const X> dy_n = image<X>(dy, n), x_n = image<X>(x, n);
    const auto mask_n = mask_of_image(p, mask, n);
    const Part<A> part = part_of<A>(scratch, plan, p, share, n - first);
    const auto run = [&](auto masked, auto write) {
      if (rows)
        scale_backward_rows<A, masked.value, write.value>(dy_n, mask_n, x_n, share.region,
                                                          image<X>(dr, n), to.ds + n * C, peaks,
                                                          to.peak + n * C, to.ties + n * C);
      else
        scale_backward_columns<A, masked.value, write.value>(
            dy_n, mask_n, x_n, share.region, image<X>(dr, n), sums_of<A>(scratch, p, share), peaks,
            part.of(share.thread - share.first_thread));
    };
    if (!mask)
      run(Flag<false>{}, Flag<false>{});
    else
      with_flag(dr.data != nullptr, [&](auto write) { run(Flag<true>{}, write); });
  }
  if (rows) return;
  share.wait();
  for (std::int64_t n = first; n < share.images.end; ++n) {
    const Part<A> part = part_of<A>(scratch, plan, p, share, n - first);
    gather_scale_backward(part, share.threads, share.channels, to.ds + n * C);
    if (peaks) gather_peaks(part, share.threads, share.channels, to.peak + n * C, to.ties + n * C);
  }
}

// peak and ties of the group, (N,C).
template <class A, class X>
void peak_group(const Problem& p, const Plan& plan, const Scratch& scratch, const Share& share,
                const Input& x, A* peak, A* ties) {
  const std::int64_t first = share.images.begin, C = p.channels;
  const bool rows = p.layout == Layout::nchw;
  for (std::int64_t n = first; n < share.images.end; ++n) {
    const Image<const X> x_n = image<X>(x, n);
    if (!rows)
      peak_of_columns(
          x_n, share.region,
          part_of<A>(scratch, plan, p, share, n - first).of(share.thread - share.first_thread));
    else
      for (std::int64_t c = share.channels.begin; c < share.channels.end; ++c)
        peak_of_row(x_n.channel(c), p.pixels, peak[n * C + c], ties[n * C + c]);
  }
  if (rows) return;
  share.wait();
  for (std::int64_t n = first; n < share.images.end; ++n)
    gather_peaks(part_of<A>(scratch, plan, p, share, n - first), share.threads, share.channels,
                 peak + n * C, ties + n * C);
}

// In place: dz (C) becomes mean, ties (C) becomes share.
template <class A>
void spread_gradient(const Problem& p, Range channels, A* dz, const A* peak, A* ties) {
  for (std::int64_t c = channels.begin; c < channels.end; ++c) {
    const A whole = p.squeeze == Squeeze::avgmax ? A(0.5) * dz[c] : dz[c];
    dz[c] = p.squeeze == Squeeze::max ? A(0) : whole / A(p.pixels);
    if (p.squeeze != Squeeze::avg)
      ties[c] = whole / (peak[c] == peak[c] ? ties[c] : A(0));  // nothing equals a NaN
  }
}

// dx of the group, g s + what dz (N,C) gives; dz and ties are used up. Without a dy there is no g.
template <class A, class X>
void squeeze_backward_group(const Problem& p, const Plan& plan, const Share& share, const Input& x,
                            const Input& dy, const std::uint8_t* mask, const A* s, A* dz,
                            const A* peak, A* ties, const Output& dx) {
  const std::int64_t first = share.images.begin, C = p.channels;
  for (std::int64_t n = first; n < share.images.end; ++n)
    spread_gradient(p, share.channels, dz + n * C, peak + n * C, ties + n * C);
  if (p.layout != Layout::nchw) share.wait();
  for (std::int64_t n = first; n < share.images.end; ++n) {
    const auto run = [&](auto scaled, auto masked, auto take) {
      squeeze_backward<A, scaled.value, masked.value, take.value>(
          p.layout, image<X>(dy, n), mask_of_image(p, mask, n), image<X>(x, n), share.region,
          s + n * C, SqueezeGradient<A>{dz + n * C, peak + n * C, ties + n * C}, image<X>(dx, n),
          plan.streaming);
    };
    with_flag(p.squeeze != Squeeze::avg, [&](auto take) {
      if (!dy.data)
        run(Flag<false>{}, Flag<false>{}, take);
      else
        with_flag(mask != nullptr, [&](auto masked) { run(Flag<true>{}, masked, take); });
    });
  }
}

inline Input as_input(const Output& t) {
  return {t.data, t.image_stride, t.channel_stride, t.pixel_stride};
}

}  // namespace se_kernels::SE_ISA
