// The kernels with a batch norm of one instruction set, SE_ISA: the sweeps, and an inference in one
// call, assembled from their phases.
#include "groups.h"
#include "kernels.h"
#include "norm_moments.h"
#include "norm_scale.h"
#include "norm_squeeze.h"
#include "types.h"

namespace se_kernels::SE_ISA {
namespace {

// The whole block of a group of images.
template <class A, class X>
void forward_group(const Problem& p, const NormInference& f, const NormOf<A>& norm,
                   const Plan& plan, const Scratch& scratch, const Share& share) {
  A *z = static_cast<A*>(scratch.by_channel[0]), *s = static_cast<A*>(scratch.by_channel[1]),
    *a = static_cast<A*>(scratch.by_reduced[0]), *h = static_cast<A*>(scratch.by_reduced[1]);
  const std::int64_t first = share.images.begin, C = p.channels, R = p.reduced;
  const bool rows = p.layout == Layout::nchw;

  if (norm.pre == Pre::identity) {
    squeeze_group<A, X>(p, plan, scratch, share, f.x, z);
    for (std::int64_t n = first; n < share.images.end; ++n)
      for (std::int64_t c = share.channels.begin; c < share.channels.end; ++c)
        z[n * C + c] = norm.at(One<A>{}, c).normed(z[n * C + c]);
  } else {
    for (std::int64_t n = first; n < share.images.end; ++n) {
      const Image<const X> x = image<X>(f.x, n);
      if (rows) {
        for (std::int64_t c = share.channels.begin; c < share.channels.end; ++c) {
          double total = 0;
          norm::squeeze_row<A>(x.channel(c), p.pixels, norm.at(One<A>{}, c), &total);
          z[n * C + c] = A(total / double(p.pixels));
        }
      } else {
        const Part<A> part =
            part_of<A>(scratch, plan, p, share, n - first).of(share.thread - share.first_thread);
        for (std::int64_t c = 0; c < C; ++c) part.totals[c] = 0;
        norm::squeeze_columns(x, share.region.pixels, C, norm, sums_of<A>(scratch, p, share),
                              part.totals);
      }
    }
    if (!rows) {
      share.wait();
      for (std::int64_t n = first; n < share.images.end; ++n)
        gather_squeeze(part_of<A>(scratch, plan, p, share, n - first), share.threads,
                       share.channels, p.pixels, Squeeze::avg, z + n * C);
    }
  }
  share.wait();
  excite(p, {f.w1, f.w2, f.b1, f.b2}, share, z + first * C, a + first * R, h + first * R,
         s + first * C);
  if (!rows) share.wait();
  for (std::int64_t n = first; n < share.images.end; ++n)
    norm::scale_rows(p, norm, image<X>(f.x, n), image<X>(f.residual, n),
                     piece_of(n, rows ? share.region.channels : share.region.pixels, rows_of(p)),
                     s + n * C, image<X>(f.y, n), nullptr, plan.streaming);
}

void run_inference(const Problem& p, const NormInference& f, const Plan& plan,
                   const Scratch& scratch) {
  with_types(p, [&](auto x, auto compute) {
    using X = typename decltype(x)::type;
    using A = typename decltype(compute)::type;
    const A *mean = static_cast<const A*>(f.mean), *var = static_cast<const A*>(f.var),
            *weight = static_cast<const A*>(f.weight), *bias = static_cast<const A*>(f.bias);
    A *scale = static_cast<A*>(scratch.by_channel[2]),
      *shift = static_cast<A*>(scratch.by_channel[3]);
    for (std::int64_t c = 0; c < p.channels; ++c) {
      scale[c] = (weight ? weight[c] : A(1)) / std::sqrt(var[c] + A(f.eps));
      shift[c] = bias ? bias[c] : A(0);
    }
    const NormOf<A> norm(Norm{mean, scale, shift, f.pre});
    share_out(p, plan,
              [&](const Share& share) { forward_group<A, X>(p, f, norm, plan, scratch, share); });
  });
}

#define SE_NORM_ENTRY(name, Arguments)                                                        \
  void run_##name(const Problem& p, const Arguments& arguments, const NormScratch& scratch) { \
    with_types(p, [&](auto x, auto compute) {                                                 \
      norm::name<typename decltype(compute)::type, typename decltype(x)::type>(p, arguments,  \
                                                                               scratch);      \
    });                                                                                       \
  }
SE_NORM_ENTRY(moments, NormMoments)
SE_NORM_ENTRY(squeeze, NormSqueeze)
SE_NORM_ENTRY(scale, NormScale)
SE_NORM_ENTRY(scale_backward, NormScaleBackward)
SE_NORM_ENTRY(squeeze_backward, NormSqueezeBackward)
#undef SE_NORM_ENTRY

}  // namespace

extern const NormKernels norm_kernels{run_moments,        run_squeeze,          run_scale,
                                      run_scale_backward, run_squeeze_backward, run_inference};

}  // namespace se_kernels::SE_ISA
