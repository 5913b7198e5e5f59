#include "plan.h"

#include <algorithm>
#include <numeric>

namespace se_kernels::cuda {
namespace {

constexpr int kVectorBytes = 16, kOctet = 8, kWarp = 32;
constexpr int kTileBytes = 56 * 1024;  // of each tensor
constexpr int kSmallestTileBytes = 2 * 1024;
constexpr int kTilesPerMultiprocessor = 2;  // at least, where there is so much to do
constexpr int kManyTiles = 12;
constexpr int kChannelsOfTile = 512;  // of nhwc, at most, and 64 at least
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
void cut_tile(Cut& cut, const Sizes& sizes, const Traits& traits, const Gpu& gpu, int target) {
  const int pixels = std::max(1, sizes.pixels), C = std::max(1, sizes.channels);
  const std::int64_t row_bytes = std::int64_t(pixels) * traits.item_bytes;
  const int tabled =
      gpu.shared_bytes / kTableShare / (std::max(1, traits.constants) * traits.sum_bytes);
  cut.span = pixels;
  if (traits.nhwc) {
    // as many channels as stay 64 at least and leave a few pixels for each thread
    const std::int64_t most = gpu.shared_bytes / kScratchShare / traits.sum_bytes;
    cut.channels = std::min(power_of_two(C), kChannelsOfTile);
    while (cut.channels > kLeastChannels && cut.channels * row_bytes > target) cut.channels /= 2;
    while (cut.channels > kOctet &&
           (cut.channels > tabled || scratch_of(cut.channels, traits, gpu.threads) > most))
      cut.channels /= 2;
    const std::int64_t pixel_bytes = std::int64_t(cut.channels) * traits.item_bytes;
    cut.span = int(std::clamp<std::int64_t>(target / pixel_bytes, 1, pixels));
  } else {
    const int together = kOctet / int(std::gcd(kOctet, pixels));
    int fitting = int(std::clamp<std::int64_t>(target / row_bytes, 1, std::min(C, tabled)));
    if (C % at_most(fitting) == 0) fitting = at_most(fitting);  // even blocks, and rounds of warps
    cut.channels = fitting;
    // so many channels that each flat tile starts at eight numbers
    if (together > 1) {
      cut.channels = std::max(together, cut.channels / together * together);
      if (std::int64_t(staged_bytes(cut.channels, sizes, traits)) > gpu.shared_bytes / kStageShare)
        cut.channels = fitting;
    }
    cut.channels = std::min(cut.channels, round_up(C, together));
    if (row_bytes > 2 * target) cut.span = round_up(ceil_div(target, traits.item_bytes), kOctet);
  }
  // even parts
  cut.splits = ceil_div(pixels, cut.span);
  cut.span = ceil_div(pixels, cut.splits);
  if (!traits.nhwc && cut.splits > 1) cut.span = round_up(cut.span, kOctet);
  cut.splits = ceil_div(pixels, cut.span);
  cut.blocks = ceil_div(C, cut.channels);
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

Cut cut_of(const Sizes& sizes, const Traits& traits, const Gpu& gpu) {
  const std::int64_t image_bytes =
      std::max<std::int64_t>(1, std::int64_t(sizes.channels) * sizes.pixels * traits.item_bytes);
  const std::int64_t share =
      sizes.images * image_bytes / (kTilesPerMultiprocessor * gpu.multiprocessors);
  const int staged = traits.nhwc || sizes.pixels % kOctet == 0 ? 0 : traits.staged;
  std::int64_t largest = kTileBytes;
  if (traits.tensors == 0)  // a lone sweep: twice as much, if multiprocessors have many such tiles
    largest = std::clamp(share * kTilesPerMultiprocessor / kManyTiles, largest, 2 * largest);
  if (staged > 0)
    largest = std::min<std::int64_t>(largest, gpu.shared_bytes / (kStageShare * staged));
  Cut cut{};
  cut_tile(cut, sizes, traits, gpu,
           int(std::min(largest, std::max<std::int64_t>(kSmallestTileBytes, share))));
  const int tiles = cut.blocks * cut.splits;
  cut.by_tiles = divisor(tiles), cut.by_blocks = divisor(cut.blocks);

  // images of a group: a share of the L2, more where the weights are large beside them
  const std::int64_t group_image = image_bytes * std::max(1, traits.tensors),
                     weights =
                         2 * std::int64_t(sizes.channels) * sizes.reduced * traits.weight_bytes;
  const auto fitting = [&](int share) {
    return int(std::clamp<std::int64_t>(gpu.l2_bytes / share / group_image, 1,
                                        std::min(kMostImages, std::max(1, sizes.images))));
  };
  cut.images = fitting(kGroupShare);
  if (weights * kWeightsShare > cut.images * group_image) cut.images = fitting(kGroupShare / 2);
  cut.groups = ceil_div(sizes.images, cut.images);

  // rows of an item of an FC: so that all multiprocessors have some
  const auto rows = [&](int all, int fewest, int most) {
    return std::clamp(at_most(std::int64_t(all) * cut.groups / gpu.multiprocessors), fewest, most);
  };
  cut.first_fc_rows = rows(sizes.reduced, kFewestRows, kMostFirstRows);
  cut.second_fc_rows = rows(sizes.channels, kWarp, kMostSecondRows);
  // one at least, without a hidden number too: the second sweep waits for it
  cut.first_fc_items = std::max(1, ceil_div(sizes.reduced, cut.first_fc_rows));
  cut.second_fc_items = std::max(1, ceil_div(sizes.channels, cut.second_fc_rows));

  // a step of a group's two sweeps is as many tiles; what is waited for was drawn by someone
  // before the blocks that are under way
  const std::int64_t step = 2 * std::int64_t(tiles) * cut.images,
                     under_way = std::int64_t(kResidentBlocks) * gpu.multiprocessors,
                     within = gpu.l2_bytes / kLagShare / (cut.images * group_image);
  const int gap = int(std::clamp<std::int64_t>(
      std::min<std::int64_t>(ceil_div(under_way, step), (within - 1) / 3), 1, cut.groups));
  cut.first_fc_lag = gap;
  cut.second_fc_lag = within < 4 ? gap : 2 * gap;
  cut.lag = within < 4 ? gap : 3 * gap;
  return only(cut, sizes, Sweep::both);
}

Cut only(Cut cut, const Sizes& sizes, Sweep sweep) {
  const int tiles = sizes.images * cut.blocks * cut.splits;
  cut.sweeps_first = sweep != Sweep::second;
  cut.sweeps_second = sweep == Sweep::both || sweep == Sweep::second;
  if (sweep == Sweep::first || sweep == Sweep::second)
    cut.first_fc_items = cut.second_fc_items = cut.lag = cut.first_fc_lag = cut.second_fc_lag = 0;
  cut.items = tiles * (int(cut.sweeps_first) + int(cut.sweeps_second)) +
              cut.groups * (cut.first_fc_items + cut.second_fc_items);
  return cut;
}

Access access_of(const Cut& cut, const Sizes& sizes, const Traits& traits,
                 std::initializer_list<Input> images) {
  if (traits.sum_bytes == 8) return Access::numbers;
  const int vector = kVectorBytes / traits.item_bytes;
  bool rows = traits.nhwc
                  ? sizes.channels % kOctet == 0 && cut.channels % kOctet == 0
                  : sizes.pixels % kOctet == 0 && (cut.splits == 1 || cut.span % kOctet == 0);
  bool flat = !traits.nhwc && cut.splits == 1 && sizes.pixels >= kOctet &&
              std::int64_t(cut.channels) * sizes.pixels % kOctet == 0 &&
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

SharedLayout shared_of(const Cut& cut, const Sizes& sizes, const Traits& traits, const Gpu& gpu,
                       Access access, bool excites) {
  const int channels = std::min(cut.channels, std::max(1, sizes.channels)),
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
      round_up(access == Access::flat ? staged_bytes(cut.channels, sizes, traits) : 0, 16);
  return shared;
}

}  // namespace se_kernels::cuda
