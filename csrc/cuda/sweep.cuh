// A sweep over a tile: what every kernel is told of the images, how a block walks its tile, and how
// it reduces it.
#pragma once

#include "octet.cuh"
#include "schedule.cuh"
#include "sums.cuh"

namespace se_kernels::cuda {

constexpr int kMostSums = 5;  // planes (N,C) that a reduction writes

// mean, scale, bias, slope, offset (C), s, d (N,C) in Sum<X>. found: planes (N,C) of what a
// reduction gives, of double for the moments. parts (planes, N, splits, C) and counters (N,
// blocks), zero at the launch: where there are several splits.
struct SweepParameters {
  Sizes sizes;
  TilePlan plan;
  Access access;
  SharedLayout shared;
  bool reversed;  // the last tile first
  Pre pre;
  Squeeze squeeze;
  Images x, residual, dy, y, dr, dx;
  std::uint8_t* mask;
  const void *mean, *scale, *bias, *s, *d, *slope, *offset, *peak, *ties;
  bool relu;
  void* found[kMostSums];
  void* parts;
  std::uint32_t* counters;
};

// A block's shared memory.
template <class X>
struct SharedMemory {
  using A = Sum<X>;
  int* words;  // four
  Table<A> table;
  A* scratch;
  unsigned char* stage;
  SE_DEVICE explicit SharedMemory(const SharedLayout& shared) {
    unsigned char* memory = shared_memory();
    words = reinterpret_cast<int*>(memory);
    table = {reinterpret_cast<A*>(memory + shared.table), shared.table_stride};
    scratch = reinterpret_cast<A*>(memory + shared.scratch);
    stage = memory + shared.stage;
  }
};

SE_DEVICE Tile tile_of(const Part& part, const Sizes& sizes, const TilePlan& plan) {
  Tile tile;
  tile.n = part.n, tile.c0 = part.block * plan.channels, tile.p0 = part.split * plan.span;
  tile.channels = smaller(plan.channels, sizes.channels - tile.c0);
  tile.p1 = smaller(tile.p0 + plan.span, sizes.pixels);
  return tile;
}

template <class A>
SE_DEVICE const A* image_of(const void* from, int n, const Sizes& sizes) {  // of (N,C)
  return static_cast<const A*>(from) + std::int64_t(n) * sizes.channels;
}

// ---- how a tile is walked

// The i-th eight of a row of nchw; eight channels of a pixel of nhwc.
SE_DEVICE Octet octet_of_row(const Tile& tile, int row, int i) {
  const int p = tile.p0 + i * kOctet;
  return {tile.n, tile.c0 + row, p, smaller(kOctet, tile.p1 - p), kOctet, 0};
}
SE_DEVICE Octet octet_of_column(const Tile& tile, int column, int p) {
  const int c = column * kOctet;
  return {tile.n, tile.c0 + c, p, smaller(kOctet, tile.channels - c), kOctet, 0};
}
SE_DEVICE Octet octet_of_run(const Tile& tile, const Sizes& sizes, int i) {
  const int row = divide(i * kOctet, sizes.by_pixels), p = i * kOctet - row * sizes.pixels;
  return {tile.n,
          tile.c0 + row,
          p,
          kOctet,
          smaller(kOctet, sizes.pixels - p),
          tile.c0 * sizes.pixels + i * kOctet};
}

// Threads to a row of so many loads, a power of two: about kLoads loads each, more if there are
// fewer rows.
SE_DEVICE Lanes lanes_of(int rows, int loads) {
  constexpr int kLoads = 8;
  const int threads = log_of(thread_count()), few = threads - log_of(rows),
            wanted = smaller(log_of((loads + kLoads - 1) / kLoads), log_of(kWarp));
  return {smaller(smaller(larger(wanted, few), log_of(loads)), threads)};
}

// Every eight numbers of the tile: begin(at) what is the same along its rows or columns, load(at),
// then body(constants, at, raw).
template <class M, int Batch, class Begin, class Load, class Body>
SE_DEVICE void for_octets(const Tile& tile, const Sizes& sizes, const Begin& begin,
                          const Load& load, const Body& body) {
  if constexpr (M::flat) {
    strided_for<Batch>(
        thread_index(), tile.channels * sizes.pixels / kOctet, thread_count(),
        [&](int i, bool on) { return load(octet_of_run(tile, sizes, i), on); },
        [&](int i, const auto& raw) {
          const Octet at = octet_of_run(tile, sizes, i);
          body(begin(at), at, raw);
        });
  } else if constexpr (M::layout == Layout::nchw) {
    const int loads = (tile.p1 - tile.p0 + kOctet - 1) / kOctet;
    const Lanes lanes = lanes_of(tile.channels, loads);
    SE_ROLLED
    for (int row = lanes.group(); row < tile.channels; row += lanes.groups()) {
      const auto constants = begin(octet_of_row(tile, row, 0));
      strided_for<Batch>(
          lanes.lane(), loads, lanes.count(),
          [&](int i, bool on) { return load(octet_of_row(tile, row, i), on); },
          [&](int i, const auto& raw) { body(constants, octet_of_row(tile, row, i), raw); });
    }
  } else {
    const int columns = (tile.channels + kOctet - 1) / kOctet,
              log = smaller(log_of(columns), log_of(thread_count()));
    const Lanes lanes{log};
    SE_ROLLED
    for (int column = lanes.lane(); column < columns; column += lanes.count()) {
      const auto constants = begin(octet_of_column(tile, column, tile.p0));
      strided_for<Batch>(
          tile.p0 + lanes.group(), tile.p1, lanes.groups(),
          [&](int p, bool on) { return load(octet_of_column(tile, column, p), on); },
          [&](int p, const auto& raw) { body(constants, octet_of_column(tile, column, p), raw); });
    }
  }
}

// ---- how a tile is reduced: Collect<A, 1> is of a row's numbers, Collect<A, 8> of eight channels'

// Rows whose numbers lie side by side, `lanes` threads to each: row_body(collect, row, lane), then
// emit(row, sums) by one thread.
template <class Collect, class A, class RowBody, class Emit>
SE_DEVICE void collect_rows(int rows, const Lanes& of_row, A* scratch, const RowBody& row_body,
                            const Emit& emit) {
  const int lanes = of_row.count(), lane = of_row.lane(), side_by_side = of_row.groups();
  SE_ROLLED
  for (int first = 0; first < rows; first += side_by_side) {
    const int row = first + of_row.group();
    Collect collect;
    if (row < rows) row_body(collect, row, lane);
    auto sums = collect.get(0);
    for (int mask = smaller(lanes, kWarp) / 2; mask > 0; mask /= 2) sums.exchange(mask);
    if (lanes <= kWarp) {
      if (lane == 0 && row < rows) emit(row, sums);
      continue;
    }
    const int warp = thread_index() / kWarp, warps = lanes / kWarp, parts = thread_count() / kWarp;
    if (first > 0) block_barrier();
    if (thread_index() % kWarp == 0) sums.put(scratch, parts, warp);
    block_barrier();
    if (lane == 0 && row < rows) {
      for (int other = 1; other < warps; ++other)
        sums.merge(decltype(sums)::get(scratch, parts, warp + other));
      emit(row, sums);
    }
  }
}

// Eight channels to a column, the pixels of a tile dealt to rows of threads: column_body(collect,
// column, row, rows), then emit(channel, sums).
template <class Collect, class A, class ColumnBody, class Emit>
SE_DEVICE void collect_columns(int channels, A* scratch, const ColumnBody& column_body,
                               const Emit& emit) {
  using S = decltype(Collect{}.get(0));
  const int columns = (channels + kOctet - 1) / kOctet, threads = thread_count(),
            log = smaller(log_of(columns), log_of(threads));
  const Lanes lanes{log};
  const int width = lanes.count(), rows = lanes.groups(), row = lanes.group(), place = lanes.lane();
  SE_ROLLED
  for (int first = 0; first < columns; first += width) {
    const int column = first + place;
    Collect collect;
    if (column < columns) column_body(collect, column, row, rows);
    if (rows == 1) {
      if (column >= columns) continue;
      SE_UNROLL
      for (int j = 0; j < kOctet; ++j)
        if (column * kOctet + j < channels) emit(column * kOctet + j, collect.get(j));
      continue;
    }
    S sums[kOctet];
    SE_UNROLL
    for (int j = 0; j < kOctet; ++j) sums[j] = collect.get(j);
    for (int mask = width; mask < kWarp; mask *= 2) {
      SE_UNROLL
      for (int j = 0; j < kOctet; ++j) sums[j].exchange(mask);
    }
    // the only round. The rows, or warps of rows, side by side: (parts, 8, pitch); four more keep
    // lanes in different banks
    const int pitch = width + 4, parts = width < kWarp ? threads / kWarp : rows,
              part = width < kWarp ? thread_index() / kWarp : row, size = parts * kOctet * pitch;
    if (width >= kWarp || thread_index() % kWarp < width) {
      SE_UNROLL
      for (int j = 0; j < kOctet; ++j)
        sums[j].put(scratch, size, (part * kOctet + j) * pitch + place);
    }
    block_barrier();
    for (int i = thread_index(); i < smaller(channels, width * kOctet); i += threads) {
      const int at = i % kOctet * pitch + i / kOctet;
      S total = S::get(scratch, size, at);
      for (int other = 1; other < parts; ++other)
        total.merge(S::get(scratch, size, other * kOctet * pitch + at));
      emit(i, total);
    }
  }
}

// Tensors of a flat tile in shared memory, one behind the other.
template <class X, int Tensors>
struct Staged {
  const unsigned char* data;
  int bytes;  // of a tensor

  // W numbers from the i-th on; of 16 bits two at a time, from an even one on.
  template <int W>
  SE_DEVICE void read(int i, float (&v)[Tensors][W]) const {
    SE_UNROLL
    for (int t = 0; t < Tensors; ++t) {
      const unsigned char* from = data + t * bytes + std::size_t(i) * sizeof(X);
      if constexpr (sizeof(X) == 2 && W % 2 == 0) {
        SE_UNROLL
        for (int k = 0; k < W / 2; ++k)
          widen_pair(reinterpret_cast<const std::uint32_t*>(from)[k], X{}, v[t][2 * k],
                     v[t][2 * k + 1]);
      } else {
        SE_UNROLL
        for (int k = 0; k < W; ++k) v[t][k] = widen(reinterpret_cast<const X*>(from)[k]);
      }
    }
  }
};

// The rows of a flat tile: each is cut in parts of side by side numbers, one of a thread.
// body(collect, constants, numbers of each tensor) for eight at a time, or for one.
template <class M, template <class, int> class Collect, int Tensors, class Begin, class Body,
          class Emit>
SE_DEVICE void reduce_staged(const Tile& tile, const Sizes& sizes, const unsigned char* stage,
                             typename M::A* scratch, const Begin& begin, const Body& body,
                             const Emit& emit) {
  constexpr int kMostOfOne = 64;
  using X = typename M::X;
  using A = typename M::A;
  using C = Collect<A, 1>;
  const int pixels = sizes.pixels,
            log = smaller(log_of((pixels + kMostOfOne - 1) / kMostOfOne), log_of(kWarp)),
            part = (pixels + (1 << log) - 1) >> log;
  const Staged<X, Tensors> staged{stage, tile.channels * pixels * int(sizeof(X))};
  collect_rows<C>(
      tile.channels, Lanes{log}, scratch,
      [&](C& collect, int row, int lane) {
        const Octet at{tile.n, tile.c0 + row, 0, 1, kOctet, 0};
        const auto constants = begin(at);
        int i = row * pixels + lane * part;
        const int end = smaller(i + part, (row + 1) * pixels);
        const auto one = [&](int i) {
          float v[Tensors][1];
          staged.read(i, v);
          body(collect, constants, v);
        };
        const int odd = sizeof(X) == 2 && i < end && i % 2 == 1 ? i++ : -1;
        SE_ROLLED
        for (; i + kOctet <= end; i += kOctet) {
          float v[Tensors][kOctet];
          staged.read(i, v);
          body(collect, constants, v);
        }
        SE_ROLLED
        for (; i < end; ++i) one(i);
        if (odd >= 0) one(odd);
      },
      [&](int row, const auto& sums) { emit(tile.c0 + row, sums); });
}

// Where eight numbers of a flat tile go there.
template <class M>
SE_DEVICE void stage_eight(unsigned char* stage, const Tile& tile, const Sizes& sizes,
                           const Octet& at, const Eight<M>& raw) {
  const int i = at.run - tile.c0 * sizes.pixels;
  SE_UNROLL
  for (int k = 0; k < int(sizeof(raw) / sizeof(Vector16)); ++k)
    reinterpret_cast<Vector16*>(stage + std::size_t(i) * sizeof(typename M::X))[k] = raw.words[k];
}

// Every row's sums where they are not flat: body(collect, constants, at, raw), then emit(c, sums).
template <class M, int Batch, template <class, int> class Collect, class Begin, class Load,
          class Body, class Emit>
SE_DEVICE void reduce_octets(const Tile& tile, typename M::A* scratch, const Begin& begin,
                             const Load& load, const Body& body, const Emit& emit) {
  using A = typename M::A;
  if constexpr (M::layout == Layout::nchw) {
    const int loads = (tile.p1 - tile.p0 + kOctet - 1) / kOctet;
    const Lanes lanes = lanes_of(tile.channels, loads);
    collect_rows<Collect<A, 1>>(
        tile.channels, lanes, scratch,
        [&](auto& collect, int row, int lane) {
          const auto constants = begin(octet_of_row(tile, row, 0));
          strided_for<Batch>(
              lane, loads, lanes.count(),
              [&](int i, bool on) { return load(octet_of_row(tile, row, i), on); },
              [&](int i, const auto& raw) {
                body(collect, constants, octet_of_row(tile, row, i), raw);
              });
        },
        [&](int row, const auto& sums) { emit(tile.c0 + row, sums); });
  } else {
    collect_columns<Collect<A, kOctet>>(
        tile.channels, scratch,
        [&](auto& collect, int column, int row, int rows) {
          const auto constants = begin(octet_of_column(tile, column, tile.p0));
          strided_for<Batch>(
              tile.p0 + row, tile.p1, rows,
              [&](int p, bool on) { return load(octet_of_column(tile, column, p), on); },
              [&](int p, const auto& raw) {
                body(collect, constants, octet_of_column(tile, column, p), raw);
              });
        },
        [&](int channel, const auto& sums) { emit(tile.c0 + channel, sums); });
  }
}

// sweep(emit) finds the sums S of the tile's rows; store(place in (N,C), sums) takes those of all
// pixels, from the last split to come. Whether this block is the last.
template <class S, class X, class Sweep, class Store>
SE_DEVICE bool find_sums(const SweepParameters& p, const SharedMemory<X>& shared, const Tile& tile,
                         const Part& part, const Sweep& sweep, const Store& store) {
  const int splits = p.plan.splits, channels = p.sizes.channels;
  Sum<X>* parts = static_cast<Sum<X>*>(p.parts);
  // where they go is worked out when they go: not before, in registers beside the sums
  const auto finish = [&](int c, const S& sums) {
    store(std::int64_t(opaque(tile.n)) * channels + c, sums);
  };
  const auto at = [&](int n, int c, int split) {
    return (std::int64_t(n) * splits + split) * channels + c;
  };
  sweep([&](int c, const S& sums) {
    if (splits == 1)
      finish(c, sums);
    else
      sums.put(parts, std::int64_t(opaque(p.sizes.images)) * splits * channels,
               at(opaque(tile.n), c, part.split));
  });
  if (splits == 1) return true;
  std::uint32_t* counter = p.counters + std::int64_t(tile.n) * p.plan.blocks + part.block;
  if (!completes(counter, splits, shared.words)) return false;
  const std::int64_t plane = std::int64_t(p.sizes.images) * splits * channels;
  for (int row = thread_index(); row < tile.channels; row += thread_count()) {
    const int c = tile.c0 + row;
    S total;
    for (int split = 0; split < splits; ++split) {
      S other;
      SE_UNROLL
      for (int k = 0; k < S::kNumbers; ++k)
        other.v[k] = load_shared_result(parts + k * plane + at(tile.n, c, split));
      total.merge(other);
    }
    finish(c, total);
  }
  return true;
}

}  // namespace se_kernels::cuda
