// A sweep over a whole batch, shared among threads: nchw by rows of pixels, one a channel, nhwc by
// rows of channels, one a pixel; each thread has one run of rows, of some images.
#pragma once

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
template <class F>
void for_pieces(Range run, std::int64_t all, bool reverse, F f) {
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

// work(piece, thread) for all pieces.
template <class Work>
void sweep(const Problem& p, int threads, bool reverse, Work work) {
  const std::int64_t all = rows_of(p);
  parallel(threads, [&](int thread, int count) {
    for_pieces(part(p.images * all, thread, count), all, reverse,
               [&](const Piece& piece) { work(piece, thread); });
    fence_streaming_stores();
  });
}

// The same, where an image in parts is put together at the end: work as above, then
// join(image, for_parts) by one thread; for_parts(f) calls f(piece, thread) for its parts, in
// order.
template <class Work, class Join>
void sweep_and_join(const Problem& p, int threads, Work work, Join join) {
  const std::int64_t all = rows_of(p);
  parallel(threads, [&](int thread, int count) {
    const auto run_of = [&](int of) { return part(p.images * all, of, count); };
    for_pieces(run_of(thread), all, false, [&](const Piece& piece) { work(piece, thread); });
    fence_streaming_stores();
    barrier();
    for_pieces(run_of(thread), all, false, [&](const Piece& own) {
      if (own.whole || own.rows.begin > 0) return;  // the thread of the first part joins
      join(own.image, [&](auto f) {
        const std::int64_t begin = own.image * all, end = begin + all;
        for (int other = thread; other < count && run_of(other).begin < end; ++other) {
          const Range run = run_of(other);
          const Range rows{run.begin > begin ? run.begin - begin : 0,
                           run.end < end ? run.end - begin : all};
          if (rows.size() > 0) f(piece_of(own.image, rows, all), other);
        }
      });
    });
  });
}

}  // namespace se_kernels::SE_ISA
