#include "plan.h"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace se_kernels::cuda {
namespace {

constexpr int kVectorBytes = 16;
constexpr int kTileBytes = 28 * 1024;  // of each tensor
constexpr int kSmallestTileBytes = 2 * 1024;
constexpr int kTilesPerMultiprocessor = 2;  // at least, where there is so much to do
constexpr int kLargestGroup = 16;
constexpr int kMostRows = 1024;            // (image, channel) pairs of a tile
constexpr int kFoundShare = 16;            // of shared memory, that a plane of them may take
constexpr double kWeightsShare = 1.0 / 4;  // of x, that one FC of a tile may read
constexpr int kRowBytes = 128;             // of nhwc that lie side by side, at least
constexpr int kSectorBytes = 32;           // that a piece of a row of W1 takes, at least
constexpr int kSpan = 64;                  // pixels that a part of them is a multiple of
constexpr int kExciteSize = 64;            // numbers of the hidden layer that one block sums
constexpr int kChunkNumbers = 2048;        // of the second FC's input, in shared memory
constexpr int kChunkShare = 8;             // of shared memory, that they may take
constexpr int kScratchShare = 4;  // of shared memory, that a reduction of a norm's may take
constexpr int kL2Share = 4;       // a group comes back before 1 / kL2Share of the cache was read

// Of a cluster's turn, to compare ways to slice: an H100, bytes a microsecond of one
// multiprocessor.
constexpr double kMemoryRate = 23e3, kCacheRate = 42e3;
constexpr double kBlockRate = 80e3;                // that one block reaches alone
constexpr double kLatency = 1.5, kExchange = 2.5;  // microseconds: a turn's, and a cluster's beside
constexpr double kSweepLatency = 8;  // of two sweeps: the counters' memset, the handing over
constexpr double kRemote = 0.05;     // of a number that a thread reads of another block
constexpr int kMostRanks = 16, kMostImages = 16;
constexpr int kChunkBytes = 16 * 1024;

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

// (images, channels) of a tile of some `rows` pairs: of the ways to cut, the one with the fewest
// bytes of weights and of partial products beside.
std::pair<int, int> cut_channels(const Sizes& sizes, const Traits& traits, const Gpu& gpu,
                                 std::int64_t rows, std::int64_t row_bytes) {
  const int widest = power_of_two(sizes.channels),
            narrowest = traits.nhwc ? std::min(widest, kRowBytes / traits.item_bytes) : 1;
  rows = std::max<std::int64_t>(narrowest, at_most(rows));
  const double weights_of_narrowest = double(narrowest) * sizes.reduced * traits.weight_bytes;
  if (traits.nhwc && weights_of_narrowest > kWeightsShare * double(rows * row_bytes))
    rows *= 2;  // it cannot be narrower: more images share the weights
  const std::int64_t all = std::int64_t(widest) * power_of_two(sizes.images),
                     most = at_most(gpu.shared_bytes / kFoundShare / traits.sum_bytes);
  rows = std::min<std::int64_t>({rows, all, most, kMostRows});
  std::pair<int, int> best{1, int(std::min<std::int64_t>(widest, rows))};
  double fewest = -1;
  for (int group = 1;
       group == 1 || group <= std::min<std::int64_t>(
                                  {kLargestGroup, power_of_two(sizes.images), rows / narrowest});
       group *= 2) {
    const int channels = int(std::min<std::int64_t>(widest, rows / group));
    if (channels < 1) break;
    const double together = channels * double(traits.weight_bytes),
                 weights = sizes.reduced * (std::max<double>(kSectorBytes, together) + together),
                 partials = 2.0 * traits.sum_bytes * group * sizes.reduced,
                 cost = (weights + partials) / (double(group) * channels);
    if (fewest < 0 || cost < fewest) best = {group, channels}, fewest = cost;
  }
  return best;
}

}  // namespace

Divisor divisor(int by) {
  int log = 0;
  while ((std::int64_t(1) << log) < by) ++log;
  // a multiplier m with m by - 2^(31 + log) < 2^log: exact below 2^31
  const std::uint64_t power = std::uint64_t(1) << (31 + log);
  return {std::uint32_t((power + by - 1) / by), 31 + log, by};
}

Sizes with_divisors(int images, int channels, int reduced, int pixels) {
  return {images,
          channels,
          reduced,
          pixels,
          divisor(std::max(1, channels)),
          divisor(std::max(1, pixels))};
}

Cut cut_of(const Sizes& sizes, const Traits& traits, const Gpu& gpu) {
  const int pixels = std::max(1, sizes.pixels);
  const std::int64_t row_bytes = std::int64_t(pixels) * traits.item_bytes;
  const std::int64_t share = std::int64_t(sizes.images) * sizes.channels * row_bytes /
                             (kTilesPerMultiprocessor * gpu.multiprocessors);
  const std::int64_t tensors =
      traits.backward ? 2 : 1;  // that a flat tile brings into shared memory
  const std::int64_t largest = std::min<std::int64_t>(kTileBytes, gpu.shared_bytes / (2 * tensors));
  const std::int64_t target = std::min(largest, std::max<std::int64_t>(kSmallestTileBytes, share));
  Cut cut{};
  std::tie(cut.images, cut.channels) =
      cut_channels(sizes, traits, gpu, target / row_bytes, row_bytes);
  if (!traits.nhwc) {
    // so many channels that a tile of odd rows starts at 16 bytes too, of fewer images then
    const int together = kVectorBytes / int(std::gcd<std::int64_t>(kVectorBytes, row_bytes));
    if (cut.channels % together != 0 && together * row_bytes <= largest) {
      cut.channels = round_up(cut.channels, together);
      while (cut.images > 1 && cut.images * cut.channels * row_bytes > largest) cut.images /= 2;
    }
  }
  const std::int64_t tile_bytes = cut.channels * row_bytes;
  const int parts = cut.images == 1 ? int(std::max<std::int64_t>(1, tile_bytes / target)) : 1;
  cut.span = parts == 1 ? pixels : round_up(ceil_div(pixels, parts), kSpan);
  cut.splits = ceil_div(pixels, cut.span);
  cut.groups = ceil_div(sizes.images, cut.images);
  cut.blocks = ceil_div(sizes.channels, cut.channels);
  cut.excite_size = std::min(kExciteSize, gpu.threads);
  // one at least, without a hidden number too: the second sweep waits for it
  cut.excites = std::max(1, ceil_div(std::int64_t(cut.images) * sizes.reduced, cut.excite_size));
  const int numbers = std::min(kChunkNumbers, gpu.shared_bytes / kChunkShare / traits.sum_bytes);
  cut.chunk = std::max(1, std::min(sizes.reduced, numbers / cut.images));

  const std::int64_t group_bytes = std::int64_t(cut.images) * sizes.channels * row_bytes;
  const int tiles = cut.blocks * cut.splits,
            enough = ceil_div(gpu.multiprocessors * kResidentBlocks, 2 * tiles),
            within = int(std::max<std::int64_t>(1, gpu.l2_bytes / kL2Share / group_bytes));
  cut.lag = std::min({enough, within, cut.groups});
  cut.ahead = cut.lag / 2;
  return only(cut, Sweep::both);
}

Cut only(Cut cut, Sweep sweep) {
  const int tiles = cut.groups * cut.blocks * cut.splits, excites = cut.groups * cut.excites;
  if (sweep != Sweep::both) cut.lag = cut.ahead = cut.groups;
  cut.first_item = sweep == Sweep::second ? tiles + excites : 0;
  cut.items = sweep == Sweep::both               ? 2 * tiles + excites
              : sweep == Sweep::first_and_excite ? tiles + excites
                                                 : tiles;
  return cut;
}

Access access_of(const Cut& cut, const Sizes& sizes, const Traits& traits,
                 std::initializer_list<Input> images, int together) {
  const int vector = kVectorBytes / traits.item_bytes;
  if (together == 0) together = vector;
  if (traits.sum_bytes == 8) return Access::numbers;
  bool rows = traits.nhwc
                  ? sizes.channels % together == 0 && cut.channels % together == 0
                  : sizes.pixels % together == 0 && (cut.splits == 1 || cut.span % together == 0);
  bool flat = !traits.nhwc && cut.splits == 1 &&
              std::int64_t(cut.channels) * sizes.pixels % together == 0 &&
              std::int64_t(sizes.channels) * sizes.pixels % together == 0;
  for (const Input& t : images) {
    if (!t.data) continue;
    const bool aligned = is_aligned(t, sizes, traits.item_bytes);
    const bool lone = (traits.nhwc ? sizes.pixels : sizes.channels) <= 1;
    rows = rows && aligned && (lone || row_stride(t, traits.nhwc) % vector == 0);
    flat = flat && aligned && is_dense(t, sizes, traits.nhwc);
  }
  return rows ? Access::vectors : flat ? Access::flat : Access::numbers;
}

Shared shared_of(const Cut& cut, const Traits& traits, const Gpu& gpu) {
  const int planes = traits.peaks ? 3 : 1, rows = cut.images * cut.channels,
            vector = traits.sum_bytes == 8 ? 1 : kVectorBytes / traits.item_bytes;
  const int scratch = gpu.threads * std::max(4, (traits.nhwc ? vector : 1) * planes);
  const int tile = rows * (cut.splits == 1 ? cut.span : 0) * traits.item_bytes,
            stage = traits.nhwc || traits.sum_bytes == 8 ? 0 : tile * (traits.backward ? 2 : 1),
            chunk = cut.images * cut.chunk * traits.sum_bytes;
  Shared shared;
  shared.found = 16;
  shared.scratch = round_up(shared.found + 4 * rows * traits.sum_bytes, 16);
  shared.work = round_up(shared.scratch + scratch * traits.sum_bytes, 16);
  shared.bytes = shared.work + round_up(std::max(stage, chunk), 16);
  return shared;
}

// ---- with a batch norm

namespace {

constexpr int kOctet = 8;

// Numbers of shared memory that a reduction takes.
int norm_scratch(int channels, bool nhwc, int sums, int threads) {
  const int warps = threads / 32, columns = ceil_div(channels, kOctet),
            width = std::min(power_of_two(columns), threads), rows = threads / width;
  if (!nhwc) return sums * warps;
  return rows == 1 ? 0 : sums * kOctet * width * (width < 32 ? warps : rows);
}

int norm_staged_bytes(int rows, int pixels, const Traits& traits, const NormTraits& norm) {
  const std::int64_t numbers = std::int64_t(rows) * pixels;
  return int(norm.staged * numbers * traits.item_bytes +
             (norm.masks ? ceil_div(numbers, kOctet) + 1 : 0));
}

}  // namespace

Cut norm_cut_of(const Sizes& sizes, const Traits& traits, const NormTraits& norm, const Gpu& gpu) {
  Cut cut = cut_of(sizes, traits, gpu);
  cut.images = 1, cut.groups = sizes.images;  // without an FC no tile gains by more
  if (traits.nhwc) {
    const int most = gpu.shared_bytes / kScratchShare / traits.sum_bytes;
    while (cut.channels > kOctet && norm_scratch(cut.channels, true, norm.sums, gpu.threads) > most)
      cut.channels /= 2;
  } else if (cut.splits == 1) {
    // so many channels that each tile starts at eight numbers
    const int rows = round_up(cut.channels, kOctet / std::gcd(kOctet, sizes.pixels));
    if (norm_staged_bytes(rows, sizes.pixels, traits, norm) <= gpu.shared_bytes / 2)
      cut.channels = rows;
  }
  cut.blocks = ceil_div(sizes.channels, cut.channels);
  return cut;
}

Access norm_access_of(const Cut& cut, const Sizes& sizes, const Traits& traits,
                      std::initializer_list<Input> images) {
  const Access access = access_of(cut, sizes, traits, images, kOctet);
  // eight numbers are of two rows at most
  return access == Access::flat && sizes.pixels < kOctet ? Access::numbers : access;
}

Shared norm_shared_of(const Cut& cut, const Sizes& sizes, const Traits& traits,
                      const NormTraits& norm, const Gpu& gpu, Access access) {
  const int scratch = norm_scratch(std::min(cut.channels, sizes.channels), traits.nhwc, norm.sums,
                                   gpu.threads),
            staged = access == Access::flat
                         ? norm_staged_bytes(cut.channels, sizes.pixels, traits, norm)
                         : 0;
  Shared shared{};
  shared.scratch = 16;  // a word before
  shared.work = round_up(shared.scratch + scratch * traits.sum_bytes, 16);
  shared.bytes = shared.work + round_up(staged, 16);
  return shared;
}

namespace {

SlicesShared lay_out(const Sizes& sizes, const Traits& traits, const Slices& slices,
                     const Gpu& gpu) {
  const int vector = kVectorBytes / traits.item_bytes, planes = traits.peaks ? 3 : 1,
            per_channel = slices.images * (traits.nhwc ? sizes.channels : slices.channels);
  const int found = per_channel * std::max(planes, traits.nhwc && traits.backward ? 2 : 1),
            scratch = gpu.threads * std::max(4, (traits.nhwc ? vector : 1) * planes);
  const int slice = traits.nhwc ? slices.pixels * sizes.channels : slices.channels * sizes.pixels;
  SlicesShared at{};
  const auto place = [&at](int numbers, int bytes) {
    const int here = at.bytes;
    at.bytes = round_up(here + numbers * bytes, 128);
    return here;
  };
  at.arrivals = place(slices.images + 1, 8);
  at.found = place(found, 4);
  at.own = place(2 * slices.images * slices.channels, 4);
  at.partial = place(slices.images * sizes.reduced, 4);
  at.hidden = place(slices.images * sizes.reduced, 4);
  at.scratch = place(scratch, 4);
  at.slot_bytes = round_up(slice * traits.item_bytes, 128);
  at.x = place(slices.staged ? at.slot_bytes : 0, 1);
  at.slots = place(slices.images * at.slot_bytes, 1);
  return at;
}

// Bytes a microsecond that each of `active` blocks gets of a multiprocessor's rate.
double share_of(double rate, double active, const Gpu& gpu) {
  return std::min(kBlockRate, rate * gpu.multiprocessors / active);
}

// Microseconds that all images take, by the rates above.
double predicted(const Sizes& sizes, const Traits& traits, const Slices& slices,
                 const SlicesShared& shared, const Gpu& gpu) {
  const double turns = ceil_div(sizes.images, slices.images),
               waves = ceil_div(std::int64_t(turns), slices.clusters),
               active = std::min<double>(turns, slices.clusters) * slices.ranks,
               passes = traits.backward ? 3 : 2,
               bytes = passes * slices.images * double(shared.slot_bytes),
               weights = 2.0 * sizes.channels * sizes.reduced * traits.weight_bytes / slices.ranks;
  const double remote = slices.ranks * double(ceil_div(slices.images * sizes.reduced, kThreads)),
               fixed = kLatency + (slices.ranks > 1 ? kExchange + kRemote * remote : 0),
               moving = bytes / share_of(kMemoryRate, active, gpu) +
                        weights / share_of(kCacheRate, active, gpu);
  // of two blocks on a multiprocessor one moves bytes, at the rate of both, while the other does
  // not
  const bool two = active > gpu.multiprocessors;
  return waves * (two ? std::max(moving, moving / 2 + fixed) : moving + fixed);
}

double predicted(const Sizes& sizes, const Traits& traits, const Cut& cut, const Gpu& gpu) {
  const double bytes = double(sizes.images) * sizes.channels * sizes.pixels * traits.item_bytes,
               blocks = double(cut.groups) * cut.blocks, passes = traits.backward ? 3 : 2,
               together = cut.channels * double(traits.weight_bytes),
               weights = sizes.reduced * (blocks * std::max<double>(kSectorBytes, together) +
                                          blocks * cut.splits * together),
               partials = 2.0 * traits.sum_bytes * blocks * cut.images * sizes.reduced,
               active =
                   std::min<double>(blocks * cut.splits, kResidentBlocks * gpu.multiprocessors),
               device = passes * bytes / (active * share_of(kMemoryRate, active, gpu)),
               cache = ((passes + 1) * bytes + weights + partials) /
                       (active * share_of(kCacheRate, active, gpu));
  return kSweepLatency + std::max(device, cache);
}

}  // namespace

ClusterPlan cluster_plan(const Sizes& sizes, const Traits& traits, const Gpu& gpu,
                         std::initializer_list<Input> images) {
  const int item = traits.item_bytes, vector = kVectorBytes / item;
  const auto no = [](std::string why) { return ClusterPlan{std::move(why), {}, {}, {}, 0}; };
  if (gpu.capability < 90)
    return no("expected a GPU of compute capability 9.0 or later, got " +
              std::to_string(gpu.capability / 10) + "." + std::to_string(gpu.capability % 10));
  if (traits.sum_bytes == 8) return no("expected sums in float32, got float64");
  if (traits.backward && traits.peaks)
    return no("expected the mean for the squeeze of backward, got a maximum");
  const std::int64_t elements = std::int64_t(sizes.channels) * sizes.pixels;
  if (elements == 0 || elements * item % kVectorBytes != 0)
    return no("expected images of a multiple of 16 bytes, got " + std::to_string(elements * item) +
              " bytes");
  if (elements * item > std::int64_t(kMostRanks) * gpu.shared_bytes)
    return no("expected images that fit " + std::to_string(kMostRanks) +
              " blocks of shared memory, got " + std::to_string(elements * item) + " bytes");
  if (traits.nhwc && sizes.channels % vector != 0)
    return no("expected a multiple of " + std::to_string(vector) +
              " channels in channels_last, got " + std::to_string(sizes.channels));
  for (const Input& t : images) {
    if (!t.data) continue;
    if (!is_aligned(t, sizes, item)) return no("expected images that start at 16 bytes");
    if (!is_dense(t, sizes, traits.nhwc)) return no("expected images without gaps");
  }

  const std::int64_t row_bytes = std::int64_t(sizes.pixels) * item;
  const int together = kVectorBytes / int(std::gcd<std::int64_t>(kVectorBytes, row_bytes));
  const bool staged = traits.backward && !traits.nhwc && sizes.pixels % vector != 0;
  ClusterPlan best;
  double least = -1;
  for (int ranks = 1; ranks <= kMostRanks; ranks *= 2)
    for (int blocks_each = 1; blocks_each <= 2; ++blocks_each) {
      const int room = std::min(gpu.shared_bytes, gpu.shared_bytes_in_all / blocks_each - 1024);
      Slices slices{};
      slices.ranks = ranks, slices.staged = staged, slices.chunk = kChunkBytes;
      slices.channels = ceil_div(sizes.channels, ranks);
      if (!traits.nhwc) slices.channels = round_up(slices.channels, together);
      slices.pixels = ceil_div(sizes.pixels, ranks);
      if (ranks > 1 && (traits.nhwc ? sizes.pixels : ceil_div(sizes.channels, together)) < ranks)
        continue;
      slices.clusters = gpu.multiprocessors * blocks_each / ranks;
      if (slices.clusters == 0) continue;
      for (slices.images = 1; slices.images <= std::min(kMostImages, sizes.images);
           slices.images *= 2) {
        const SlicesShared shared = lay_out(sizes, traits, slices, gpu);
        if (shared.bytes > room) break;
        const double time = predicted(sizes, traits, slices, shared, gpu);
        if (least >= 0 && time >= least) continue;
        least = time;
        best.slices = slices, best.shared = shared, best.microseconds = time;
      }
    }
  if (least < 0) return no("expected an image that fits a cluster's shared memory, with its FCs");
  const double swept = predicted(sizes, traits, cut_of(sizes, traits, gpu), gpu);
  if (swept < least)
    best.slower = "predicted " + std::to_string(int(swept + 1)) + " us against " +
                  std::to_string(int(least + 1)) + " in one pass";
  best.slices.clusters = std::min(best.slices.clusters, ceil_div(sizes.images, best.slices.images));
  return best;
}

}  // namespace se_kernels::cuda
