// How the images and channels of one call are shared among threads, and with which stores.
#pragma once

#include "../api.h"

namespace se_kernels {

struct Plan {
  int threads;
  std::int64_t solo;   // images that are each one thread's own work; the rest are split by channels
  std::int64_t group;  // images squeezed before they are excited together
  bool streaming;      // stores that pass the caches by
};

// tensors: how many of x's size are touched twice within a group.
Plan make_plan(const Problem& p, int tensors, std::int64_t element_bytes);

// Scratch of one call: images x channels and images x reduced numbers, and each thread's columns.
struct Scratch {
  void* by_channel[4];  // (N,C) of the compute type
  void* by_reduced[2];  // (N,R)
  void* sums;           // (threads,C)
  void* totals;         // (threads,group,C) of double
  void *peaks, *ties;   // (threads,group,C)
};

// The same of a sweep with a batch norm, whose images are independent of each other: `sums` sums a
// channel. totals (threads,sums,C) and slots (threads,2,sums,C) of double, partial (threads,sums,C)
// and shift (threads,C) of the compute type.
struct NormScratch {
  int threads, sums;
  bool streaming;
  void *totals, *slots, *partial, *shift;
};

}  // namespace se_kernels
