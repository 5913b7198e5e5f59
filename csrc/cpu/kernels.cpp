// The kernels of one instruction set, SE_ISA: forward and backward assembled from their phases.
#include "kernels.h"

#include "groups.h"

namespace se_kernels::SE_ISA {
namespace {

template <class A, class X>
void forward_group(const Problem& p, const Forward& f, const Plan& plan, const Scratch& scratch,
                   const Share& share) {
  const auto kept = [](void* kept, void* spare) { return static_cast<A*>(kept ? kept : spare); };
  A* z = kept(f.z, scratch.by_channel[0]);
  A* s = kept(f.s, scratch.by_channel[1]);
  A* a = kept(f.a, scratch.by_reduced[0]);
  A* h = static_cast<A*>(scratch.by_reduced[1]);
  const std::int64_t first = share.images.begin, C = p.channels, R = p.reduced;

  squeeze_group<A, X>(p, plan, scratch, share, f.x, z);
  share.wait();
  excite(p, {f.w1, f.w2, f.b1, f.b2}, share, z + first * C, a + first * R, h + first * R,
         s + first * C);
  if (p.layout != Layout::nchw) share.wait();
  scale_group<A, X>(p, plan, share, f.x, f.residual, s, f.y);
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

template <class A, class X>
void backward_group(const Problem& p, const Backward& b, const Plan& plan, const Scratch& scratch,
                    const Share& share) {
  const Gradients<A> d = gradients<A>(b, scratch);
  scale_backward_group<A, X>(p, plan, scratch, share, b.x, b.dy, b.y, b.dr, {d.de, d.peak, d.ties});
  excite_backward(p, b, share, d);
  if (!b.dx.data) return;
  const bool written = p.post == Post::relu && b.dr.data;  // then dr is g
  squeeze_backward_group<A, X>(p, plan, share, b.x, written ? as_input(b.dr) : b.dy,
                               written ? Input{} : b.y, d.s, d.dz, d.peak, d.ties, b.dx);
}

void run_forward(const Problem& p, const Forward& f, const Plan& plan, const Scratch& scratch) {
  with_types(p, [&](auto x, auto compute) {
    using X = typename decltype(x)::type;
    using A = typename decltype(compute)::type;
    share_out(p, plan,
              [&](const Share& share) { forward_group<A, X>(p, f, plan, scratch, share); });
  });
}

void run_backward(const Problem& p, const Backward& b, const Plan& plan, const Scratch& scratch) {
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

void run_squeeze(const Problem& p, const SqueezeForward& f, const Plan& plan,
                 const Scratch& scratch) {
  with_types(p, [&](auto x, auto compute) {
    using X = typename decltype(x)::type;
    using A = typename decltype(compute)::type;
    share_out(p, plan, [&](const Share& share) {
      squeeze_group<A, X>(p, plan, scratch, share, f.x, static_cast<A*>(f.z));
      share.wait();
    });
  });
}

void run_scale(const Problem& p, const ScaleForward& f, const Plan& plan, const Scratch&) {
  with_types(p, [&](auto x, auto compute) {
    using X = typename decltype(x)::type;
    using A = typename decltype(compute)::type;
    share_out(p, plan, [&](const Share& share) {
      scale_group<A, X>(p, plan, share, f.x, f.residual, static_cast<const A*>(f.s), f.y);
    });
  });
}

void run_scale_backward(const Problem& p, const ScaleBackward& b, const Plan& plan,
                        const Scratch& scratch) {
  with_types(p, [&](auto x, auto compute) {
    using X = typename decltype(x)::type;
    using A = typename decltype(compute)::type;
    A *zero = static_cast<A*>(scratch.by_channel[0]),
      *none = static_cast<A*>(scratch.by_channel[1]);
    A* ds = static_cast<A*>(b.ds ? b.ds : scratch.by_channel[2]);
    const bool masked = p.post == Post::relu, written = masked && b.dr.data;
    share_out(p, plan, [&](const Share& share) {
      if (b.ds || written)
        scale_backward_group<A, X>(p, plan, scratch, share, b.x, b.dy, b.y, b.dr, {ds, none, none});
      if (b.dx.data) {
        for (std::int64_t n = share.images.begin; n < share.images.end; ++n)
          for (std::int64_t c = share.channels.begin; c < share.channels.end; ++c)
            zero[n * p.channels + c] = 0;
        squeeze_backward_group<A, X>(p, plan, share, b.x, written ? as_input(b.dr) : b.dy,
                                     written ? Input{} : b.y, static_cast<const A*>(b.s), zero,
                                     none, none, b.dx);
      }
      share.wait();
    });
  });
}

void run_squeeze_backward(const Problem& p, const SqueezeBackward& b, const Plan& plan,
                          const Scratch& scratch) {
  with_types(p, [&](auto x, auto compute) {
    using X = typename decltype(x)::type;
    using A = typename decltype(compute)::type;
    const auto at = [](void* t) { return static_cast<A*>(t); };
    A *dz = at(scratch.by_channel[0]), *peak = at(scratch.by_channel[1]),
      *ties = at(scratch.by_channel[2]);
    const A *s = static_cast<const A*>(b.s ? b.s : b.dz), *given = static_cast<const A*>(b.dz);
    share_out(p, plan, [&](const Share& share) {
      if (p.squeeze != Squeeze::avg) peak_group<A, X>(p, plan, scratch, share, b.x, peak, ties);
      for (std::int64_t n = share.images.begin; n < share.images.end; ++n)
        for (std::int64_t c = share.channels.begin; c < share.channels.end; ++c)
          dz[n * p.channels + c] = given[n * p.channels + c];
      squeeze_backward_group<A, X>(p, plan, share, b.x, b.g, Input{}, s, dz, peak, ties, b.dx);
      share.wait();
    });
  });
}

}  // namespace

extern const Kernels kernels{run_forward, run_backward,       run_squeeze,
                             run_scale,   run_scale_backward, run_squeeze_backward};

}  // namespace se_kernels::SE_ISA
