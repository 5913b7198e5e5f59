// Threads: who works on which images and channels.
#pragma once

#include "function_ref.h"
#include "plan.h"
#include "plane.h"
#include "threads.h"

namespace se_kernels::SE_ISA {

inline Range part(std::int64_t size, int index, int count) {
  return {size * index / count, size * (index + 1) / count};
}

// A thread's share of a group of images.
struct Share {
  Range images;
  Region region;                      // its part of each image, where x lies
  Range channels, reduced;            // its part of the numbers per channel, and of the bottleneck
  int thread, first_thread, threads;  // the team that works on the group

  void wait() const {
    if (threads > 1) barrier();
  }
};

// work(share) for every group: whole images a thread, then the rest, each split among all threads.
// When all are done, finish(channels, reduced), if any, with a thread's share of the rows of W2 and
// of W1.
inline void share_out(const Problem& p, const Plan& plan, FunctionRef<void(const Share&)> work,
                      const FunctionRef<void(Range, Range)>* finish = nullptr) {
  const bool rows = p.layout == Layout::nchw;
  parallel(plan.threads, [&](int thread, int count) {
    const Range own = part(plan.solo, thread, count);
    for (std::int64_t n = own.begin; n < own.end; n += plan.group) {
      const std::int64_t end = n + plan.group < own.end ? n + plan.group : own.end;
      work(Share{{n, end},
                 {{0, p.channels}, {0, p.pixels}},
                 {0, p.channels},
                 {0, p.reduced},
                 thread,
                 thread,
                 1});
    }
    const Range channels = part(p.channels, thread, count),
                reduced = part(p.reduced, thread, count);
    const Region region{rows ? channels : Range{0, p.channels},
                        rows ? Range{0, p.pixels} : part(p.pixels, thread, count)};
    for (std::int64_t n = plan.solo; n < p.images; n += plan.group) {
      const std::int64_t end = n + plan.group < p.images ? n + plan.group : p.images;
      work(Share{{n, end}, region, channels, reduced, thread, 0, count});
    }
    if (finish) {
      barrier();
      (*finish)(channels, reduced);
    }
    if (plan.streaming) fence_streaming_stores();
  });
}

}  // namespace se_kernels::SE_ISA
