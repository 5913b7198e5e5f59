// Sums of several terms a channel over the pixels of a whole batch.
#pragma once

#include "batch_sweep.h"
#include "norm.h"

namespace se_kernels::SE_ISA::norm {

// What one thread has to itself.
template <class A>
struct ThreadScratch {
  double *totals, *slots;  // (K,C), (2,K,C)
  A *partial, *shift;      // (K,C), (C)

  ThreadScratch(const NormScratch& scratch, int thread, std::int64_t C) {
    const std::int64_t k = scratch.sums;
    totals = static_cast<double*>(scratch.totals) + thread * k * C;
    slots = static_cast<double*>(scratch.slots) + thread * 2 * k * C;
    partial = static_cast<A*>(scratch.partial) + thread * k * C;
    shift = static_cast<A*>(scratch.shift) + thread * C;
  }
  // Where a piece's sums (K,C) are put.
  double* of(const Piece& piece, std::int64_t sums, std::int64_t C) const {
    return piece.whole ? totals : slots + piece.slot * sums * C;
  }
};

constexpr int kMostSums = 5;

// row(image, c, totals) adds to K totals of channel c of nchw; columns(image, pixels, partial,
// totals) to K totals of each channel of nhwc; put(n, c, totals, stride) takes channel c's.
template <class A>
void sums(const Problem& p, const NormScratch& scratch, int K,
          FunctionRef<void(std::int64_t, std::int64_t, double*)> row,
          FunctionRef<void(std::int64_t, Range, A*, double*)> columns,
          FunctionRef<void(std::int64_t, std::int64_t, const double*, std::int64_t)> put) {
  const std::int64_t C = p.channels;
  if (p.layout == Layout::nchw)
    return sweep(p, scratch.threads, false, [&](const Piece& piece, int) {
      for (std::int64_t c = piece.rows.begin; c < piece.rows.end; ++c) {
        double totals[kMostSums] = {};
        row(piece.image, c, totals);
        put(piece.image, c, totals, 1);
      }
    });
  sweep_and_join(
      p, scratch.threads,
      [&](const Piece& piece, int thread) {
        const ThreadScratch<A> own(scratch, thread, C);
        double* to = own.of(piece, K, C);
        for (std::int64_t i = 0; i < K * C; ++i) to[i] = 0;
        columns(piece.image, piece.rows, own.partial, to);
        if (piece.whole)
          for (std::int64_t c = 0; c < C; ++c) put(piece.image, c, to + c, C);
      },
      [&](const Parts& parts) {
        for (std::int64_t c = 0; c < C; ++c) {
          double totals[kMostSums] = {};
          parts.each([&](const Piece& piece, int thread) {
            const double* from = ThreadScratch<A>(scratch, thread, C).of(piece, K, C);
            for (int k = 0; k < K; ++k) totals[k] += from[k * C + c];
          });
          put(parts.image, c, totals, 1);
        }
      });
}

}  // namespace se_kernels::SE_ISA::norm
