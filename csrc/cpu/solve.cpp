// The numbers per channel, and per image and channel, between the sweeps of a batch with a norm
// before the block, of one instruction set, SE_ISA.
#include "solve.h"

#include <algorithm>
#include <cmath>

#include "groups.h"

namespace se_kernels::SE_ISA {
namespace {

constexpr std::int64_t kRun = 64;    // channels whose sums over the images are taken side by side
constexpr std::int64_t kGroup = 16;  // images that are excited together, while z is cached

// work(share) by a team that shares the whole batch.
template <class Work>
void by_team(const Problem& p, int threads, Work work) {
  parallel(threads, [&](int thread, int count) {
    work(Share{{0, p.images},
               {{0, p.channels}, {0, p.pixels}},
               part(p.channels, thread, count),
               part(p.reduced, thread, count),
               thread,
               0,
               count});
  });
}

// f(Range) for each run of channels.
template <class F>
void for_runs(Range channels, F f) {
  for (std::int64_t c = channels.begin; c < channels.end; c += kRun)
    f(Range{c, std::min(c + kRun, channels.end)});
}

double element(const Vector& v, std::int64_t i) {
  const auto at = [&](auto type) {
    using T = typename decltype(type)::type;
    return double(widen(static_cast<const T*>(v.data)[i]));
  };
  switch (v.type) {
    case DType::float32:
      return at(Type<float>{});
    case DType::bfloat16:
      return at(Type<BFloat16>{});
    case DType::float16:
      return at(Type<Float16>{});
    case DType::float64:
      break;
  }
  return at(Type<double>{});
}

// mean and biased variance of some channels over the batch, by Chan's formula from those of its
// images, and the running ones moved towards them.
void statistics(const Problem& p, const NormForward& f, const SolveScratch& scratch, Range channels,
                double* mean, double* var) {
  const std::int64_t C = p.channels, N = p.images, size = channels.size();
  const double pixels = double(p.pixels), count = double(N) * pixels;
  // about the first image's mean, so that a constant channel has exactly its constant
  double near[kRun], m2[kRun] = {};
  for (std::int64_t k = 0; k < size; ++k) {
    const double first = N > 0 ? scratch.means[channels.begin + k] : 0;
    near[k] = std::isfinite(first) ? first : 0, mean[k] = 0;
  }
  for (std::int64_t n = 0; n < N; ++n) {
    const double* means = scratch.means + n * C + channels.begin;
    for (std::int64_t k = 0; k < size; ++k) mean[k] += means[k] - near[k];
  }
  for (std::int64_t k = 0; k < size; ++k) mean[k] = near[k] + mean[k] / double(N);
  for (std::int64_t n = 0; n < N; ++n) {
    const std::int64_t at = n * C + channels.begin;
    for (std::int64_t k = 0; k < size; ++k) {
      const double gap = scratch.means[at + k] - mean[k];
      m2[k] += scratch.m2[at + k] + pixels * gap * gap;
    }
  }
  for (std::int64_t k = 0; k < size; ++k) var[k] = m2[k] / count;
  if (!f.moved) return;
  const double kept = 1 - f.momentum;
  for (std::int64_t k = 0; k < size; ++k) {
    const std::int64_t c = channels.begin + k;
    f.moved[c] = f.momentum * mean[k] + kept * element(f.mean, c);
    f.moved[C + c] = f.momentum * (m2[k] / (count - 1)) + kept * element(f.var, c);
  }
}

template <class A>
void solve_norm(const Problem& p, const NormForward& f, const SolveScratch& scratch,
                Range channels) {
  const std::int64_t C = p.channels, N = p.images, size = channels.size();
  double mean[kRun], var[kRun];
  if (f.training)
    statistics(p, f, scratch, channels, mean, var);
  else
    for (std::int64_t k = 0; k < size; ++k)
      mean[k] = element(f.mean, channels.begin + k), var[k] = element(f.var, channels.begin + k);
  A* norm = static_cast<A*>(f.norm) + channels.begin;
  const A *weight = static_cast<const A*>(f.weight), *bias = static_cast<const A*>(f.bias);
  for (std::int64_t k = 0; k < size; ++k) {
    const std::int64_t c = channels.begin + k;
    const A rstd = A(1) / std::sqrt(A(var[k]) + A(f.eps));
    norm[k] = A(mean[k]);
    norm[C + k] = weight ? rstd * weight[c] : rstd;
    norm[2 * C + k] = bias ? bias[c] : A(0);
    norm[3 * C + k] = rstd;
  }
  if (f.pre != Pre::identity) return;
  const double* means = f.means ? f.means : scratch.means;
  A *squeezed = static_cast<A*>(f.squeezed), *z = static_cast<A*>(scratch.z);
  for (std::int64_t n = 0; n < N; ++n) {
    const std::int64_t at = n * C + channels.begin;
    for (std::int64_t k = 0; k < size; ++k) {
      const A centred = A(means[at + k] - double(norm[k]));
      squeezed[at + k] = centred;
      z[at + k] = centred * norm[C + k] + norm[2 * C + k];
    }
  }
}

// ds, into de (N,C), and z of some channels.
template <class A>
void solve_gate(const Problem& p, const NormBackward& b, const SolveScratch& scratch,
                Range channels) {
  const std::int64_t C = p.channels, N = p.images, plane = N * C, size = channels.size();
  const A *sums = static_cast<const A*>(scratch.sums),
          *scale = static_cast<const A*>(b.norm) + C + channels.begin, *bias = scale + C,
          *squeezed = static_cast<const A*>(b.squeezed);
  A *ds = static_cast<A*>(scratch.de), *z = static_cast<A*>(scratch.z);
  for (std::int64_t n = 0; n < N; ++n) {
    const std::int64_t at = n * C + channels.begin;
    for (std::int64_t k = 0; k < size; ++k) {
      if (b.pre == Pre::identity) {
        ds[at + k] = scale[k] * sums[plane + at + k] + bias[k] * sums[at + k];
        z[at + k] = squeezed[at + k] * scale[k] + bias[k];
      } else {
        ds[at + k] = sums[at + k];
      }
    }
  }
}

// d of some channels, the gradients of the norm's bias and weight, and what those of the
// statistics add to dx.
template <class A>
void solve_norm_backward(const Problem& p, const NormBackward& b, const SolveScratch& scratch,
                         Range channels) {
  const std::int64_t C = p.channels, N = p.images, plane = N * C, size = channels.size();
  const bool active = b.pre != Pre::identity;
  const A pixels = A(p.pixels), *s = static_cast<const A*>(b.s),
          *dz = static_cast<const A*>(scratch.dz), *squeezed = static_cast<const A*>(b.squeezed),
          *total = static_cast<const A*>(scratch.sums) + (active ? plane : 0),
          *moment = total + plane, *opened = moment + plane, *opened_moment = opened + plane;
  A* d = static_cast<A*>(scratch.d);
  double dbias[kRun] = {}, dscale[kRun] = {};
  for (std::int64_t n = 0; n < N; ++n) {
    const std::int64_t at = n * C + channels.begin;
    for (std::int64_t k = 0; k < size; ++k) {
      const std::int64_t i = at + k;
      const A d_i = dz[i] / pixels;
      d[i] = d_i;
      const A open = active ? opened[i] : pixels,
              open_moment = active ? opened_moment[i] : pixels * squeezed[i];
      dbias[k] += double(d_i * open + s[i] * total[i]);
      dscale[k] += double(d_i * open_moment + s[i] * moment[i]);
    }
  }
  const A *scale = static_cast<const A*>(b.norm) + C + channels.begin, *rstd = scale + 2 * C,
          count = A(double(N) * double(p.pixels));
  for (std::int64_t k = 0; k < size; ++k) {
    const std::int64_t c = channels.begin + k;
    const A of_bias = A(dbias[k]), of_weight = rstd[k] * A(dscale[k]);
    static_cast<A*>(b.dbias)[c] = of_bias;
    static_cast<A*>(b.dweight)[c] = of_weight;
    const A share = -scale[k] / count;
    static_cast<A*>(scratch.slope)[c] = share * rstd[k] * of_weight;  // rstd³ may be no float
    static_cast<A*>(scratch.offset)[c] = share * of_bias;
  }
}

template <class A>
Excited<A> excited(const NormBackward& b, const SolveScratch& scratch) {
  const auto at = [](void* t) { return static_cast<A*>(t); };
  const auto* z = static_cast<const A*>(b.pre == Pre::identity ? scratch.z : b.squeezed);
  return {z,
          static_cast<const A*>(b.a),
          static_cast<const A*>(b.s),
          at(scratch.de),
          at(scratch.da),
          at(scratch.h),
          at(scratch.dz)};
}

void run_norm(const Problem& p, const NormForward& f, const SolveScratch& scratch) {
  with_compute_type(p, [&](auto type) {
    by_team(p, scratch.threads, [&](const Share& share) {
      for_runs(share.channels, [&](Range channels) {
        solve_norm<typename decltype(type)::type>(p, f, scratch, channels);
      });
    });
  });
}

void run_excite(const Problem& p, const NormForward& f, const SolveScratch& scratch) {
  with_compute_type(p, [&](auto type) {
    using A = typename decltype(type)::type;
    const A* z = static_cast<const A*>(f.pre == Pre::identity ? scratch.z : f.squeezed);
    A *a = static_cast<A*>(f.a), *h = static_cast<A*>(scratch.h), *s = static_cast<A*>(f.s);
    by_team(p, scratch.threads, [&](Share share) {
      for (std::int64_t n = 0; n < p.images; n += kGroup) {
        share.images = {n, std::min(n + kGroup, p.images)};
        excite(p, {f.w1, f.w2, f.b1, f.b2}, share, z + n * p.channels, a + n * p.reduced,
               h + n * p.reduced, s + n * p.channels);
      }
    });
  });
}

void run_backward(const Problem& p, const NormBackward& b, const SolveScratch& scratch) {
  with_compute_type(p, [&](auto type) {
    using A = typename decltype(type)::type;
    by_team(p, scratch.threads, [&](const Share& share) {
      for_runs(share.channels, [&](Range channels) { solve_gate<A>(p, b, scratch, channels); });
      excite_backward(p, {b.w1, b.w2, nullptr, nullptr}, share, excited<A>(b, scratch));
      for_runs(share.channels,
               [&](Range channels) { solve_norm_backward<A>(p, b, scratch, channels); });
    });
  });
}

void run_weight_gradients(const Problem& p, const NormBackward& b, const SolveScratch& scratch) {
  with_compute_type(p, [&](auto type) {
    using A = typename decltype(type)::type;
    by_team(p, scratch.threads, [&](const Share& share) {
      weight_gradients(p, {b.dw1, b.dw2, b.db1, b.db2}, share.channels, share.reduced,
                       excited<A>(b, scratch));
    });
  });
}

}  // namespace

extern const SolveKernels solve_kernels{run_norm, run_excite, run_backward, run_weight_gradients};

}  // namespace se_kernels::SE_ISA
