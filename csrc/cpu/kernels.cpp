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
  scale_group<A, X>(p, plan, share, f.x, f.residual, s, f.y, f.mask);
}

template <class A>
Excited<A> excited(const Backward& b, const Scratch& scratch) {
  const auto at = [](auto* p) { return static_cast<A*>(p); };
  return {static_cast<const A*>(b.z),
          static_cast<const A*>(b.a),
          static_cast<const A*>(b.s),
          at(scratch.by_channel[3]),
          at(scratch.by_reduced[0]),
          at(scratch.by_reduced[1]),
          b.dx.data ? at(scratch.by_channel[0]) : nullptr};
}

template <class A, class X>
void backward_group(const Problem& p, const Backward& b, const Plan& plan, const Scratch& scratch,
                    const Share& share) {
  const Excited<A> d = excited<A>(b, scratch);
  A *peak = static_cast<A*>(scratch.by_channel[1]), *ties = static_cast<A*>(scratch.by_channel[2]);
  scale_backward_group<A, X>(p, plan, scratch, share, b.x, b.dy, b.mask, b.dr, {d.de, peak, ties});
  excite_backward(p, {b.w1, b.w2, nullptr, nullptr}, share, d);
  if (!b.dx.data) return;
  const bool written = b.mask && b.dr.data;  // then dr is g
  squeeze_backward_group<A, X>(p, plan, share, b.x, written ? as_input(b.dr) : b.dy,
                               written ? nullptr : b.mask, d.s, d.dz, peak, ties, b.dx);
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
    const auto finish = [&](Range channels, Range reduced) {
      weight_gradients(p, {b.dw1, b.dw2, b.db1, b.db2}, channels, reduced, excited<A>(b, scratch));
    };
    const FunctionRef<void(Range, Range)> then = finish;
    share_out(
        p, plan, [&](const Share& share) { backward_group<A, X>(p, b, plan, scratch, share); },
        &then);
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
      scale_group<A, X>(p, plan, share, f.x, f.residual, static_cast<const A*>(f.s), f.y, f.mask);
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
    const bool written = b.mask && b.dr.data;
    share_out(p, plan, [&](const Share& share) {
      if (b.ds || written)
        scale_backward_group<A, X>(p, plan, scratch, share, b.x, b.dy, b.mask, b.dr,
                                   {ds, none, none});
      if (b.dx.data) {
        for (std::int64_t n = share.images.begin; n < share.images.end; ++n)
          for (std::int64_t c = share.channels.begin; c < share.channels.end; ++c)
            zero[n * p.channels + c] = 0;
        squeeze_backward_group<A, X>(p, plan, share, b.x, written ? as_input(b.dr) : b.dy,
                                     written ? nullptr : b.mask, static_cast<const A*>(b.s), zero,
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
      squeeze_backward_group<A, X>(p, plan, share, b.x, b.g, nullptr, s, dz, peak, ties, b.dx);
      share.wait();
    });
  });
}

}  // namespace

extern const Kernels kernels{run_forward, run_backward,       run_squeeze,
                             run_scale,   run_scale_backward, run_squeeze_backward};

}  // namespace se_kernels::SE_ISA
