// The kernels of one instruction set, SE_ISA: forward and backward assembled from their phases.
#include "kernels.h"

#include "excite.h"
#include "scale.h"
#include "share.h"
#include "squeeze.h"

namespace se_kernels::SE_ISA {
namespace {

template <class T>
struct Type {
  using type = T;
};

// f(Type<W>) for the weights' type; double weights come with A = double only.
template <class A, class F>
void with_weights(DType type, F f) {
  switch (type) {
    case DType::float32:
      return f(Type<float>{});
    case DType::bfloat16:
      return f(Type<BFloat16>{});
    case DType::float16:
      return f(Type<Float16>{});
    case DType::float64:
      if constexpr (sizeof(A) == 8) return f(Type<double>{});
  }
}

// f(Type<X>, Type<A>): sums in double where x or the weights are double.
template <class F>
void with_types(const Problem& p, F f) {
  const bool wide = p.w_type == DType::float64;
  switch (p.x_type) {
    case DType::float32:
      return wide ? f(Type<float>{}, Type<double>{}) : f(Type<float>{}, Type<float>{});
    case DType::bfloat16:
      return wide ? f(Type<BFloat16>{}, Type<double>{}) : f(Type<BFloat16>{}, Type<float>{});
    case DType::float16:
      return wide ? f(Type<Float16>{}, Type<double>{}) : f(Type<Float16>{}, Type<float>{});
    case DType::float64:
      return f(Type<double>{}, Type<double>{});
  }
}

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

// s (N,C) and a (N,R) of a group from z (N,C): h (N,R) is scratch.
template <class A>
void excite(const Problem& p, const Forward& f, const Share& share, const A* z, A* a, A* h, A* s) {
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

template <class A, class X>
void forward_group(const Problem& p, const Forward& f, const Plan& plan, const Scratch& scratch,
                   const Share& share) {
  const auto kept = [](void* kept, void* spare) { return static_cast<A*>(kept ? kept : spare); };
  A* z = kept(f.z, scratch.by_channel[0]);
  A* s = kept(f.s, scratch.by_channel[1]);
  A* a = kept(f.a, scratch.by_reduced[0]);
  A* h = static_cast<A*>(scratch.by_reduced[1]);
  const std::int64_t first = share.images.begin, C = p.channels, R = p.reduced;

  const bool rows = p.layout == Layout::nchw;
  for (std::int64_t n = first; n < share.images.end; ++n) {
    const Part<A> part = part_of<A>(scratch, plan, p, share, n - first);
    if (rows)
      squeeze_rows(image<X>(f.x, n), share.region, p.squeeze, z + n * C);
    else
      squeeze_columns(image<X>(f.x, n), share.region, p.squeeze, sums_of<A>(scratch, p, share),
                      part.of(share.thread - share.first_thread));
  }
  share.wait();
  if (!rows) {
    for (std::int64_t n = first; n < share.images.end; ++n)
      gather_squeeze(part_of<A>(scratch, plan, p, share, n - first), share.threads, share.channels,
                     p.pixels, p.squeeze, z + n * C);
    share.wait();
  }
  excite(p, f, share, z + first * C, a + first * R, h + first * R, s + first * C);
  if (!rows) share.wait();
  for (std::int64_t n = first; n < share.images.end; ++n) {
    const auto run = [&](auto residual, auto relu) {
      scale<A, residual.value, relu.value>(p.layout, image<X>(f.x, n), image<X>(f.residual, n),
                                           share.region, s + n * C, image<X>(f.y, n),
                                           plan.streaming);
    };
    const auto with_post = [&](auto residual) {
      p.post == Post::relu ? run(residual, Flag<true>{}) : run(residual, Flag<false>{});
    };
    f.residual.data ? with_post(Flag<true>{}) : with_post(Flag<false>{});
  }
}

// What one call of backward works on, whole batch.
template <class A>
struct Gradients {
  const A *z, *a, *s;
  A *de, *da, *h;       // (N,C), (N,R), (N,R)
  A *dz, *peak, *ties;  // (N,C)
};

template <class A>
Gradients<A> gradients(const Backward& b, const Scratch& scratch) {
  const auto at = [](auto* p) { return static_cast<A*>(p); };
  return {static_cast<const A*>(b.z), static_cast<const A*>(b.a), static_cast<const A*>(b.s),
          at(scratch.by_channel[3]),  at(scratch.by_reduced[0]),  at(scratch.by_reduced[1]),
          at(scratch.by_channel[0]),  at(scratch.by_channel[1]),  at(scratch.by_channel[2])};
}

// da (N,R), h (N,R) and dz (N,C) of a group from ds, which becomes de (N,C).
template <class A>
void excite_backward(const Problem& p, const Backward& b, const Share& share,
                     const Gradients<A>& d) {
  const std::int64_t C = p.channels, R = p.reduced, first = share.images.begin,
                     count = share.images.size();
  for (std::int64_t n = first; n < share.images.end; ++n) {
    const std::int64_t at = n * C + share.channels.begin;
    close_gate(p.gate, d.s + at, d.de + at, share.channels.size());
  }
  share.wait();
  with_weights<A>(p.w_type, [&](auto type) {
    using W = typename decltype(type)::type;
    product(static_cast<const W*>(b.w2), R, C, Strided<A>{d.de + first * C, C, 1}, {0, count},
            share.reduced, d.da + first * R, R);
    for (std::int64_t n = first; n < share.images.end; ++n)
      for (std::int64_t at = n * R + share.reduced.begin; at < n * R + share.reduced.end; ++at) {
        // a closed unit stops even an infinite gradient
        d.da[at] = is_closed(p.act, d.a[at])
                       ? A(0)
                       : d.da[at] * activate_backward(p.act, A(p.act_slope), d.a[at]);
        d.h[at] = activate(p.act, A(p.act_slope), d.a[at]);
      }
    if (!b.dx.data) return;
    share.wait();
    product(static_cast<const W*>(b.w1), C, R, Strided<A>{d.da + first * R, R, 1}, {0, count},
            share.channels, d.dz + first * C, C);
  });
}

// dW2 = Σ_n de hᵀ, db2 = Σ_n de, dW1 = Σ_n da zᵀ, db1 = Σ_n da: a thread's share of the rows.
template <class A>
void weight_gradients(const Problem& p, const Backward& b, Range channels, Range reduced,
                      const Gradients<A>& d) {
  const std::int64_t C = p.channels, R = p.reduced, N = p.images;
  with_weights<A>(p.w_type, [&](auto type) {
    using W = typename decltype(type)::type;
    if (b.dw2)
      product(d.h, R, N, Strided<A>{d.de, 1, C}, channels, {0, R}, static_cast<W*>(b.dw2), R);
    if (b.dw1)
      product(d.z, C, N, Strided<A>{d.da, 1, R}, reduced, {0, C}, static_cast<W*>(b.dw1), C);
    if (b.db2) sum_over_images(d.de, N, C, channels, static_cast<W*>(b.db2));
    if (b.db1) sum_over_images(d.da, N, R, reduced, static_cast<W*>(b.db1));
  });
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

template <class A, class X>
void backward_group(const Problem& p, const Backward& b, const Plan& plan, const Scratch& scratch,
                    const Share& share) {
  const std::int64_t first = share.images.begin, C = p.channels;
  const Gradients<A> d = gradients<A>(b, scratch);
  const bool masked = p.post == Post::relu, peaks = p.squeeze != Squeeze::avg,
             rows = p.layout == Layout::nchw;

  for (std::int64_t n = first; n < share.images.end; ++n) {
    const Image<const X> dy = image<X>(b.dy, n), y = image<X>(b.y, n), x = image<X>(b.x, n);
    const Part<A> part = part_of<A>(scratch, plan, p, share, n - first);
    const auto run = [&](auto relu, auto write, auto track) {
      if (rows)
        scale_backward_rows<A, relu.value, write.value, track.value>(
            dy, y, x, share.region, image<X>(b.dr, n), d.de + n * C, d.peak + n * C,
            d.ties + n * C);
      else
        scale_backward_columns<A, relu.value, write.value, track.value>(
            dy, y, x, share.region, image<X>(b.dr, n), sums_of<A>(scratch, p, share),
            part.of(share.thread - share.first_thread));
    };
    const auto with_peaks = [&](auto relu, auto write) {
      peaks ? run(relu, write, Flag<true>{}) : run(relu, write, Flag<false>{});
    };
    if (!masked)
      with_peaks(Flag<false>{}, Flag<false>{});
    else if (b.dr.data)
      with_peaks(Flag<true>{}, Flag<true>{});
    else
      with_peaks(Flag<true>{}, Flag<false>{});
  }
  if (!rows) {
    share.wait();
    for (std::int64_t n = first; n < share.images.end; ++n)
      gather_scale_backward(part_of<A>(scratch, plan, p, share, n - first), share.threads,
                            share.channels, peaks, d.de + n * C, d.peak + n * C, d.ties + n * C);
  }
  excite_backward(p, b, share, d);
  if (!b.dx.data) return;
  for (std::int64_t n = first; n < share.images.end; ++n)
    spread_gradient(p, share.channels, d.dz + n * C, d.peak + n * C, d.ties + n * C);
  if (!rows) share.wait();
  for (std::int64_t n = first; n < share.images.end; ++n) {
    const Image<X> dr = image<X>(b.dr, n);
    const bool written = masked && dr;  // then dr is g
    const Image<const X> g =
        written ? Image<const X>{dr.data, dr.channel_stride, dr.pixel_stride} : image<X>(b.dy, n);
    const auto run = [&](auto relu, auto take) {
      squeeze_backward<A, relu.value, take.value>(
          p.layout, g, image<X>(b.y, n), image<X>(b.x, n), share.region, d.s + n * C,
          SqueezeGradient<A>{d.dz + n * C, d.peak + n * C, d.ties + n * C}, image<X>(b.dx, n),
          plan.streaming);
    };
    const auto with_peaks = [&](auto relu) {
      peaks ? run(relu, Flag<true>{}) : run(relu, Flag<false>{});
    };
    masked && !written ? with_peaks(Flag<true>{}) : with_peaks(Flag<false>{});
  }
}

}  // namespace

void forward(const Problem& p, const Forward& f, const Plan& plan, const Scratch& scratch) {
  with_types(p, [&](auto x, auto compute) {
    using X = typename decltype(x)::type;
    using A = typename decltype(compute)::type;
    share_out(
        p, plan, [&](const Share& share) { forward_group<A, X>(p, f, plan, scratch, share); },
        [](Range, Range) {});
  });
}

void backward(const Problem& p, const Backward& b, const Plan& plan, const Scratch& scratch) {
  with_types(p, [&](auto x, auto compute) {
    using X = typename decltype(x)::type;
    using A = typename decltype(compute)::type;
    share_out(
        p, plan, [&](const Share& share) { backward_group<A, X>(p, b, plan, scratch, share); },
        [&](Range channels, Range reduced) {
          weight_gradients(p, b, channels, reduced, gradients<A>(b, scratch));
        });
  });
}

}  // namespace se_kernels::SE_ISA
