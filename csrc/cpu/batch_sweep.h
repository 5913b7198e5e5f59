// A sweep over a whole batch, shared among threads: nchw by rows of pixels, one a channel, nhwc by
// rows of channels, one a pixel; each thread has one run of rows, of some images.
#pragma once

#include "function_ref.h"
#include "plane.h"
#include "share.h"

namespace se_kernels::SE_ISA {

// Some rows of one image. slot: of two that each thread has for what it finds in a part of an
// image; a run has at most one part at its start and one at its end.
struct Piece {
  std::int64_t image;
  Range rows;
  bool whole;
  int slot;
};

inline Piece piece_of(std::int64_t image, Range rows, std::int64_t all) {
  return {image, rows, rows.size() == all, rows.begin > 0 ? 0 : 1};
}

// f(piece) for each piece of a run of rows, an image having `all`; from the last back if reverse.
inline void for_pieces(Range run, std::int64_t all, bool reverse,
                       FunctionRef<void(const Piece&)> f) {
  if (run.size() == 0) return;
  const std::int64_t first = run.begin / all, last = (run.end - 1) / all;
  for (std::int64_t k = 0; k <= last - first; ++k) {
    const std::int64_t n = reverse ? last - k : first + k, at = n * all;
    f(piece_of(n, {n == first ? run.begin - at : 0, n == last ? run.end - at : all}, all));
  }
}

inline std::int64_t rows_of(const Problem& p) {
  return p.layout == Layout::nchw ? p.channels : p.pixels;
}

using Work = FunctionRef<void(const Piece&, int thread)>;

// work for all pieces.
inline void sweep(const Problem& p, int threads, bool reverse, Work work) {
  const std::int64_t all = rows_of(p);
  parallel(threads, [&](int thread, int count) {
    for_pieces(part(p.images * all, thread, count), all, reverse,
               [&](const Piece& piece) { work(piece, thread); });
    fence_streaming_stores();
  });
}

// The pieces of an image that is split among the threads from `first` on.
struct Parts {
  std::int64_t image, all, rows;  // rows of an image, and of the batch
  int first, count;

  // f(piece, thread) for each, in order.
  template <class F>
  void each(F f) const {
    const std::int64_t begin = image * all, end = begin + all;
    for (int thread = first; thread < count && part(rows, thread, count).begin < end; ++thread) {
      const Range run = part(rows, thread, count);
      const Range own{run.begin > begin ? run.begin - begin : 0,
                      run.end < end ? run.end - begin : all};
      if (own.size() > 0) f(piece_of(image, own, all), thread);
    }
  }
};

// The same, where an image in parts is put together at the end, by join in one thread.
inline void sweep_and_join(const Problem& p, int threads, Work work,
                           FunctionRef<void(const Parts&)> join) {
  const std::int64_t all = rows_of(p), rows = p.images * all;
  parallel(threads, [&](int thread, int count) {
    const Range run = part(rows, thread, count);
    for_pieces(run, all, false, [&](const Piece& piece) { work(piece, thread); });
    fence_streaming_stores();
    barrier();
    for_pieces(run, all, false, [&](const Piece& own) {
      // the thread of the first part joins
      if (!own.whole && own.rows.begin == 0) join({own.image, all, rows, thread, count});
    });
  });
}

}  // namespace se_kernels::SE_ISA
