// moments: of each image's channel, mean and Σ (x - mean)².
#pragma once

#include "norm_sums.h"

namespace se_kernels::SE_ISA::norm {

constexpr std::int64_t kShifted = 16;  // numbers whose mean shifts all of a channel

struct Moments {
  double count, mean, m2;

  // From Σ (x - shift) and Σ (x - shift)².
  static Moments shifted(double count, double shift, double sum, double squares) {
    const double m2 = squares - sum * (sum / count);
    return {count, shift + sum / count, m2 < 0 ? 0 : m2};
  }
  void merge(const Moments& other) {
    const double all = count + other.count, gap = other.mean - mean;
    m2 += other.m2 + gap * gap * (count * other.count / all);
    mean += gap * (other.count / all);
    count = all;
  }
};

template <class A>
A usable_shift(A mean) {
  return mean - mean == 0 ? mean : A(0);  // a sum that is not finite stays what it is
}

template <class A>
SE_INLINE auto shifted_terms(A x, A shift) {
  const A d = x - shift;
  return Terms<A, 2>{{d, d * d}};
}

template <class A, class X>
Moments moments_of_row(const X* x, std::int64_t n) {
  const std::int64_t first = n < kShifted ? n : kShifted;
  A shift = 0;
  for (std::int64_t i = 0; i < first; ++i) shift += load(One<A>{}, x + i);
  shift = usable_shift(shift / A(first));
  double totals[2] = {};
  sum_row_terms<A, 2>(n, totals, [=](auto tag, std::int64_t i) {
    using V = typename decltype(tag)::type;
    return shifted_terms<V>(load(tag, x + i), V{} + shift);
  });
  return Moments::shifted(double(n), double(shift), totals[0], totals[1]);
}

// mean and m2 (C) of some pixels, into `to` (2,C).
template <class A, class X>
void moments_of_columns(Image<const X> x, Range pixels, std::int64_t C, const ThreadScratch<A>& own,
                        double* to) {
  const std::int64_t first = pixels.size() < kShifted ? pixels.size() : kShifted;
  for (std::int64_t c = 0; c < C; ++c) own.shift[c] = 0;
  for (std::int64_t p = pixels.begin; p < pixels.begin + first; ++p)
    for (std::int64_t c = 0; c < C; ++c) own.shift[c] += load(One<A>{}, x.pixel(p) + c);
  for (std::int64_t c = 0; c < C; ++c) own.shift[c] = usable_shift(own.shift[c] / A(first));
  for (std::int64_t i = 0; i < 2 * C; ++i) to[i] = 0;
  const A* shift = own.shift;
  sum_columns_terms<A, 2, 4>(
      pixels, C, own.partial, to, [=](auto tag, std::int64_t p, std::int64_t c) {
        return shifted_terms(load(tag, x.pixel(p) + c), load(tag, shift + c));
      });
  for (std::int64_t c = 0; c < C; ++c) {
    const Moments m =
        Moments::shifted(double(pixels.size()), double(own.shift[c]), to[c], to[C + c]);
    to[c] = m.mean, to[C + c] = m.m2;
  }
}

template <class A, class X>
void moments(const Problem& p, const NormMoments& f, const NormScratch& scratch) {
  const std::int64_t C = p.channels;
  double *mean = static_cast<double*>(f.mean), *m2 = static_cast<double*>(f.m2);
  const auto put = [&](std::int64_t n, std::int64_t c, double mean_c, double m2_c) {
    mean[n * C + c] = mean_c, m2[n * C + c] = m2_c;
  };
  if (p.layout == Layout::nchw)
    return sweep(p, scratch.threads, false, [&](const Piece& piece, int) {
      const Image<const X> x = image<X>(f.x, piece.image);
      for (std::int64_t c = piece.rows.begin; c < piece.rows.end; ++c) {
        const Moments m = moments_of_row<A>(x.channel(c), p.pixels);
        put(piece.image, c, m.mean, m.m2);
      }
    });
  sweep_and_join(
      p, scratch.threads,
      [&](const Piece& piece, int thread) {
        const ThreadScratch<A> own(scratch, thread, C);
        double* to = own.of(piece, 2, C);
        moments_of_columns(image<X>(f.x, piece.image), piece.rows, C, own, to);
        if (piece.whole)
          for (std::int64_t c = 0; c < C; ++c) put(piece.image, c, to[c], to[C + c]);
      },
      [&](const Parts& parts) {
        for (std::int64_t c = 0; c < C; ++c) {
          Moments all{0, 0, 0};
          parts.each([&](const Piece& piece, int thread) {
            const double* from = ThreadScratch<A>(scratch, thread, C).of(piece, 2, C);
            const Moments m{double(piece.rows.size()), from[c], from[C + c]};
            all.count == 0 ? void(all = m) : all.merge(m);
          });
          put(parts.image, c, all.mean, all.m2);
        }
      });
}

}  // namespace se_kernels::SE_ISA::norm
