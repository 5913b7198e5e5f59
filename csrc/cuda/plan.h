// How a problem is cut: plain arithmetic on shapes, no search on a GPU. docs/kernels.md has the
// counted figures behind the numbers.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "api.h"

namespace se_kernels::cuda {

constexpr int kThreads = 256;       // of a block
constexpr int kResidentBlocks = 4;  // of two sweeps, on a multiprocessor: assumed

// i / by for 0 <= i < 2^31, without a division.
struct Divisor {
  std::uint32_t multiplier;
  int shift, by;
};
Divisor divisor(int by);  // at least 1

struct Sizes {
  int images, channels, reduced, pixels;  // N, C, R, P
  Divisor by_channels, by_pixels;
};
Sizes with_divisors(int images, int channels, int reduced, int pixels);

// What a plan depends on beside the sizes. peaks: the squeeze takes a maximum.
struct Traits {
  int item_bytes, weight_bytes, sum_bytes;
  bool nhwc, backward, peaks;
};

// ---- two sweeps

// How a tile is read: 16 bytes at a time along its rows; 16 bytes at a time whatever the rows
// (nchw, through shared memory); one number at a time.
enum class Access { vectors, flat, numbers };

// A group is `images` images; a tile is a group's `channels` channels by `span` pixels; blocks of
// channels by splits of pixels make a group. excites: parts of the excitation, each of
// `excite_size` numbers. lag: groups between the sweeps; ahead: from the excitation to the second.
// chunk: numbers of the second FC's input in shared memory at a time, of each image. The launch has
// `items` items, numbered from first_item.
struct Cut {
  int images, channels, span;
  int groups, blocks, splits, excites, excite_size, lag, ahead, chunk;
  int first_item, items;
};

// Where things lie in a block's shared memory, in bytes from its start; a word lies there.
struct Shared {
  int found, scratch, work, bytes;
};

Cut cut_of(const Sizes&, const Traits&, const Gpu&);

// The cut with the items of one sweep only, or of the first and the excitation.
enum class Sweep { both, first, first_and_excite, second };
Cut only(Cut, Sweep);

// Of the counters that have to be zero at the launch: the tickets, two a group, one a block of
// channels.
inline std::int64_t counters_bytes(const Cut& cut) {
  return 4 * (1 + std::int64_t(cut.groups) * (2 + cut.blocks));
}

// `together`: numbers that are read at once, 0 for 16 bytes of them.
Access access_of(const Cut&, const Sizes&, const Traits&, std::initializer_list<Input> images,
                 int together = 0);
Shared shared_of(const Cut&, const Traits&, const Gpu&);

// ---- with a batch norm: one sweep a launch, eight numbers at a time, a block a tile of one image

// What a kernel needs beside: `sums` numbers of each (n, c) are found, `staged` tensors come into
// shared memory where a row starts anywhere (flat), `masks` bits do.
struct NormTraits {
  int sums, staged;
  bool masks;
};

Cut norm_cut_of(const Sizes&, const Traits&, const NormTraits&, const Gpu&);
Access norm_access_of(const Cut&, const Sizes&, const Traits&, std::initializer_list<Input> images);
Shared norm_shared_of(const Cut&, const Sizes&, const Traits&, const NormTraits&, const Gpu&,
                      Access);

// Of the counters, one a tile's splits.
inline std::int64_t norm_counters_bytes(const Cut& cut) {
  return cut.splits == 1 ? 0 : 4 * std::int64_t(cut.groups) * cut.blocks;
}

// ---- one pass in a cluster

// A cluster of `ranks` blocks takes `images` images at a time. A block's slice of one is, of nchw,
// `channels` channels, of nhwc `pixels` pixels; of the excitation each has `channels` channels.
// chunk: bytes copied at a time. staged: x of one image comes into shared memory too (backward).
struct Slices {
  int images, ranks, clusters, channels, pixels, chunk;
  bool staged;
};

// Where things lie in the shared memory of a block of a cluster, in bytes.
struct SlicesShared {
  int arrivals, found, own, partial, hidden, scratch, x, slots, slot_bytes, bytes;
};

struct ClusterPlan {
  std::string why_not;  // empty where a cluster can do it
  std::string slower;   // empty where two sweeps are not predicted to be faster
  Slices slices;
  SlicesShared shared;
  double microseconds;  // predicted, of all images
};

ClusterPlan cluster_plan(const Sizes&, const Traits&, const Gpu&,
                         std::initializer_list<Input> images);

}  // namespace se_kernels::cuda
