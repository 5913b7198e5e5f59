// How a problem is cut: plain arithmetic on shapes, no search on a GPU. docs/kernels.md has the
// counted figures behind the numbers. Every plan fits in 24 KB of shared memory a block, of which
// the reductions and FCs of float64 need 16 at 256 threads; GPUs from 7.5 on have 64 KB.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "api.h"

namespace se_kernels::cuda {

constexpr int kThreads = 256;       // of a block
constexpr int kResidentBlocks = 3;  // of a multiprocessor: how far the plan looks ahead

// i / by for 0 <= i < 2^31, without a division.
struct Divisor {
  std::uint32_t multiplier;
  int shift, by;
};
Divisor divisor(int by);  // at least 1

struct Sizes {
  int images, channels, reduced, pixels;  // N, C, R, P
  Divisor by_pixels;
};
Sizes sizes_of(const Problem&);

// What a plan depends on beside the sizes. sums: numbers that a reduction finds of each (n, c).
// staged: tensors of a flat tile that come into shared memory. tensors: of x's size, that are read
// again by the second sweep. constants: per channel, in shared memory.
struct Traits {
  int item_bytes, sum_bytes, weight_bytes;
  bool nhwc;
  int sums, staged, tensors, constants;
};

// How a tile is read: 16 bytes at a time along its rows; 16 bytes at a time whatever the rows
// (nchw, each tile one run of memory); one number at a time.
enum class Access { vectors, flat, numbers };

// A tile is `channels` channels by `span` pixels of an image: blocks of channels by splits of
// pixels. A group is `images` images. Each FC of a group is cut in items of so many rows. Lags: how
// many groups the first sweep is ahead.
struct TilePlan {
  int images, groups, channels, blocks, span, splits;
  int first_fc_items, first_fc_rows, second_fc_items, second_fc_rows;
  int first_fc_lag, second_fc_lag, lag;
  bool sweeps_first, sweeps_second;
  int items;  // of the launch
  Divisor by_tiles, by_blocks;
};

TilePlan tile_plan_of(const Sizes&, const Traits&, const Gpu&);

// The plan with the items of one sweep only, or of the first and the FCs.
enum class Sweep { both, first, first_and_excite, second };
TilePlan only(TilePlan, const Sizes&, Sweep);

// Bytes of launch counters, zeroed first: one ticket and three per group; one per block of channels
// where a reduction has several splits.
inline std::int64_t schedule_counters_bytes(const TilePlan& plan) {
  return 4 * (1 + 3 * std::int64_t(plan.groups));
}
inline std::int64_t split_counters_bytes(const TilePlan& plan, const Sizes& sizes) {
  return plan.splits == 1 ? 0 : 4 * std::int64_t(sizes.images) * plan.blocks;
}

Access access_of(const TilePlan&, const Sizes&, const Traits&, std::initializer_list<Input> images);

// Where things lie in a block's shared memory, in bytes from its start; four words lie there.
struct SharedLayout {
  int table, table_stride, scratch, stage, bytes;
};
SharedLayout shared_of(const TilePlan&, const Sizes&, const Traits&, const Gpu&, Access,
                       bool excites);

}  // namespace se_kernels::cuda
