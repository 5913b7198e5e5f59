#include "plan.h"

#include <algorithm>
#include <numeric>

namespace se_kernels::cuda {
namespace {

constexpr int kVectorBytes = 16, kOctet = 8, kWarp = 32;
constexpr int kTileBytes = 56 * 1024;  // of each tensor
constexpr int kSmallestTileBytes = 2 * 1024;
constexpr int kTilesPerMultiprocessor = 2;  // at least, where there is so much to do
constexpr int kManyTiles = 12;              // per multiprocessor, that larger tiles must leave
constexpr int kChannelsOfTile = 512;        // of nhwc, at most, and 64 at least
constexpr int kLeastChannels = 64;
constexpr int kStageShare = 4;    // of shared memory, that staged tensors may take
constexpr int kScratchShare = 4;  // of shared memory, that a reduction may take
constexpr int kTableShare = 4;    // of shared memory, that numbers per channel may take
constexpr int kMostImages = 32;   // of a group
constexpr int kGroupShare = 16;   // of the L2, that a group takes; twice where weights are large
constexpr int kWeightsShare = 4;  // of a group, that the weights are less than then
constexpr int kLagShare = 2;      // of the L2, that the groups between the sweeps may take
constexpr int kFewestRows = 4, kMostFirstRows = 32, kMostSecondRows = 128;  // of an FC's item
constexpr int kSlots = 256;  // numbers of a warp's part of an FC: excite.cuh

int ceil_div(std::int64_t size, std::int64_t by) { return int((size + by - 1) / by); }
int round_up(int size, int to) { return (size + to - 1) / to * to; }
int power_of_two(std::int64_t size) {  // at least size and 1
  std::int64_t power = 1;
  while (power < size) power *= 2;
  return int(std::min<std::int64_t>(power, 1 << 30));
}
int at_most(std::int64_t size) {  // a power of two, 1 below
  const int power = power_of_two(size);
  return power > std::max<std::int64_t>(size, 1) ? power / 2 : power;
}

bool is_aligned(const Input& t, const Sizes& sizes, int item_bytes) {
  const bool starts = reinterpret_cast<std::uintptr_t>(t.data) % kVectorBytes == 0;
  return starts && (sizes.images == 1 || t.image_stride * item_bytes % kVectorBytes == 0);
}
std::int64_t row_stride(const Input& t, bool nhwc) {
  return nhwc ? t.pixel_stride : t.channel_stride;
}

// An image is one run of memory.
bool is_dense(const Input& t, const Sizes& sizes, bool nhwc) {
  const int rows = nhwc ? sizes.pixels : sizes.channels;
  return rows <= 1 || row_stride(t, nhwc) == (nhwc ? sizes.channels : sizes.pixels);
}

// Numbers of shared memory that a reduction takes: sweep.cuh.
int scratch_of(int channels, const Traits& traits, int threads) {
  const int warps = threads / kWarp, columns = ceil_div(channels, kOctet),
            width = std::min(power_of_two(columns), threads), rows = threads / width;
  if (!traits.nhwc) return traits.sums * warps;
  const int parts = width < kWarp ? warps : rows;
  return rows == 1 ? 0 : traits.sums * kOctet * (width + 4) * parts;
}

int staged_bytes(int rows, const Sizes& sizes, const Traits& traits) {
  const std::int64_t numbers = std::int64_t(rows) * sizes.pixels;
  // of a sweep that stages nothing, a bit for each number
  return int(std::max<std::int64_t>(traits.staged * numbers * traits.item_bytes,
                                    ceil_div(numbers, kOctet) + 1));
}

// Channels and pixels of a tile of some `target` bytes.
void plan_tile(TilePlan& plan, const Sizes& sizes, const Traits& traits, const Gpu& gpu,
               int target) {
  const int pixels = std::max(1, sizes.pixels), C = std::max(1, sizes.channels);
  const std::int64_t row_bytes = std::int64_t(pixels) * traits.item_bytes;
  const int tabled =
      gpu.shared_bytes / kTableShare / (std::max(1, traits.constants) * traits.sum_bytes);
  plan.span = pixels;
  if (traits.nhwc) {
    // as many channels as stay 64 at least and leave a few pixels for each thread
    const std::int64_t most = gpu.shared_bytes / kScratchShare / traits.sum_bytes;
    plan.channels = std::min(power_of_two(C), kChannelsOfTile);
    while (plan.channels > kLeastChannels && plan.channels * row_bytes > target) plan.channels /= 2;
    while (plan.channels > kOctet &&
           (plan.channels > tabled || scratch_of(plan.channels, traits, gpu.threads) > most))
      plan.channels /= 2;
    const std::int64_t pixel_bytes = std::int64_t(plan.channels) * traits.item_bytes;
    plan.span = int(std::clamp<std::int64_t>(target / pixel_bytes, 1, pixels));
  } else {
    const int together = kOctet / int(std::gcd(kOctet, pixels));
    int fitting = int(std::clamp<std::int64_t>(target / row_bytes, 1, std::min(C, tabled)));
    if (C % at_most(fitting) == 0) fitting = at_most(fitting);  // even blocks, full rounds of warps
    plan.channels = fitting;
    // so many channels that each flat tile starts at eight numbers
    if (together > 1) {
      plan.channels = std::max(together, plan.channels / together * together);
      if (std::int64_t(staged_bytes(plan.channels, sizes, traits)) > gpu.shared_bytes / kStageShare)
        plan.channels = fitting;
    }
    plan.channels = std::min(plan.channels, round_up(C, together));
    if (row_bytes > 2 * target) plan.span = round_up(ceil_div(target, traits.item_bytes), kOctet);
  }
  // even parts
  plan.splits = ceil_div(pixels, plan.span);
  plan.span = ceil_div(pixels, plan.splits);
  if (!traits.nhwc && plan.splits > 1) plan.span = round_up(plan.span, kOctet);
  plan.splits = ceil_div(pixels, plan.span);
  plan.blocks = ceil_div(C, plan.channels);
}

}  // namespace

Divisor divisor(int by) {
  int shift = 0;
  while ((std::int64_t(1) << shift) < by) ++shift;
  const std::uint64_t power = std::uint64_t(1) << (31 + shift);
  return {std::uint32_t((power + by - 1) / by), 31 + shift, by};
}

Sizes sizes_of(const Problem& p) {
  return {int(p.images), int(p.channels), int(p.reduced), int(p.pixels),
          divisor(std::max(1, int(p.pixels)))};
}

TilePlan tile_plan_of(const Sizes& sizes, const Traits& traits, const Gpu& gpu) {
  const std::int64_t image_bytes =
      std::max<std::int64_t>(1, std::int64_t(sizes.channels) * sizes.pixels * traits.item_bytes);
  const std::int64_t share =
      sizes.images * image_bytes / (kTilesPerMultiprocessor * gpu.multiprocessors);
  const int staged = traits.nhwc || sizes.pixels % kOctet == 0 ? 0 : traits.staged;
  std::int64_t largest = kTileBytes;
  if (traits.tensors == 0)  // a launch of its own: larger tiles, if many are left
    largest = std::clamp(share * kTilesPerMultiprocessor / kManyTiles, largest, 2 * largest);
  if (staged > 0)
    largest = std::min<std::int64_t>(largest, gpu.shared_bytes / (kStageShare * staged));
  TilePlan plan{};
  plan_tile(plan, sizes, traits, gpu,
            int(std::min(largest, std::max<std::int64_t>(kSmallestTileBytes, share))));
  const int tiles = plan.blocks * plan.splits;
  plan.by_tiles = divisor(tiles), plan.by_blocks = divisor(plan.blocks);

  // images of a group: a share of the L2, more where the weights are large beside them
  const std::int64_t group_image = image_bytes * std::max(1, traits.tensors),
                     weights =
                         2 * std::int64_t(sizes.channels) * sizes.reduced * traits.weight_bytes;
  const auto fitting = [&](int share) {
    return int(std::clamp<std::int64_t>(gpu.l2_bytes / share / group_image, 1,
                                        std::min(kMostImages, std::max(1, sizes.images))));
  };
  plan.images = fitting(kGroupShare);
  if (weights * kWeightsShare > plan.images * group_image) plan.images = fitting(kGroupShare / 2);
  plan.groups = ceil_div(sizes.images, plan.images);

  // rows of an item of an FC: so that all multiprocessors have some
  const auto rows = [&](int all, int fewest, int most) {
    return std::clamp(at_most(std::int64_t(all) * plan.groups / gpu.multiprocessors), fewest, most);
  };
  plan.first_fc_rows = rows(sizes.reduced, kFewestRows, kMostFirstRows);
  plan.second_fc_rows = rows(sizes.channels, kWarp, kMostSecondRows);
  // one at least, without a hidden number too: the second sweep waits for it
  plan.first_fc_items = std::max(1, ceil_div(sizes.reduced, plan.first_fc_rows));
  plan.second_fc_items = std::max(1, ceil_div(sizes.channels, plan.second_fc_rows));

  // a step of a group's two sweeps is as many tiles; what is waited for was drawn by someone
  // before the blocks that are under way
  const std::int64_t step = 2 * std::int64_t(tiles) * plan.images,
                     under_way = std::int64_t(kResidentBlocks) * gpu.multiprocessors,
                     within = gpu.l2_bytes / kLagShare / (plan.images * group_image);
  const int gap = int(std::clamp<std::int64_t>(
      std::min<std::int64_t>(ceil_div(under_way, step), (within - 1) / 3), 1, plan.groups));
  plan.first_fc_lag = gap;
  plan.second_fc_lag = within < 4 ? gap : 2 * gap;
  plan.lag = within < 4 ? gap : 3 * gap;
  return only(plan, sizes, Sweep::both);
}

TilePlan only(TilePlan plan, const Sizes& sizes, Sweep sweep) {
  const int tiles = sizes.images * plan.blocks * plan.splits;
  plan.sweeps_first = sweep != Sweep::second;
  plan.sweeps_second = sweep == Sweep::both || sweep == Sweep::second;
  if (sweep == Sweep::first || sweep == Sweep::second)
    plan.first_fc_items = plan.second_fc_items = plan.lag = plan.first_fc_lag = plan.second_fc_lag =
        0;
  plan.items = tiles * (int(plan.sweeps_first) + int(plan.sweeps_second)) +
               plan.groups * (plan.first_fc_items + plan.second_fc_items);
  return plan;
}

Access access_of(const TilePlan& plan, const Sizes& sizes, const Traits& traits,
                 std::initializer_list<Input> images) {
  if (traits.sum_bytes == 8) return Access::numbers;
  const int vector = kVectorBytes / traits.item_bytes;
  bool rows = traits.nhwc
                  ? sizes.channels % kOctet == 0 && plan.channels % kOctet == 0
                  : sizes.pixels % kOctet == 0 && (plan.splits == 1 || plan.span % kOctet == 0);
  bool flat = !traits.nhwc && plan.splits == 1 && sizes.pixels >= kOctet &&
              std::int64_t(plan.channels) * sizes.pixels % kOctet == 0 &&
              std::int64_t(sizes.channels) * sizes.pixels % kOctet == 0;
  for (const Input& t : images) {
    if (!t.data) continue;
    const bool aligned = is_aligned(t, sizes, traits.item_bytes);
    const bool lone = (traits.nhwc ? sizes.pixels : sizes.channels) <= 1;
    rows = rows && aligned && (lone || row_stride(t, traits.nhwc) % vector == 0);
    flat = flat && aligned && is_dense(t, sizes, traits.nhwc);
  }
  return rows ? Access::vectors : flat ? Access::flat : Access::numbers;
}

SharedLayout shared_of(const TilePlan& plan, const Sizes& sizes, const Traits& traits,
                       const Gpu& gpu, Access access, bool excites) {
  const int channels = std::min(plan.channels, std::max(1, sizes.channels)),
            scratch = std::max(scratch_of(channels, traits, gpu.threads),
                               excites ? gpu.threads / kWarp * kSlots : 0);
  SharedLayout shared;
  shared.table = 16;
  shared.table_stride = round_up(channels, kOctet) + kOctet;
  shared.scratch =
      round_up(shared.table + traits.constants * shared.table_stride * traits.sum_bytes, 16);
  shared.stage = round_up(shared.scratch + scratch * traits.sum_bytes, 16);
  shared.bytes =
      shared.stage +
      round_up(access == Access::flat ? staged_bytes(plan.channels, sizes, traits) : 0, 16);
  return shared;
}

}  // namespace se_kernels::cuda
