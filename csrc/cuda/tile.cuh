// A block's part of the images, and where its numbers lie.
#pragma once

#include "number.cuh"
#include "plan.h"

namespace se_kernels::cuda {

// Images n0 to n0 + images, channels c0 to c0 + channels, pixels p0 to p1.
struct Tile {
  int n0, images, c0, channels, p0, p1;
  SE_DEVICE int rows() const { return images * channels; }  // (image, channel) pairs
  SE_DEVICE int image_of(int row) const { return n0 + row / channels; }
  SE_DEVICE int channel_of(int row) const { return c0 + row % channels; }
};

SE_DEVICE Tile tile_of(int group, int block, int split, const Sizes& sizes, const Cut& cut) {
  Tile tile;
  tile.n0 = group * cut.images, tile.c0 = block * cut.channels, tile.p0 = split * cut.span;
  tile.images = smaller(cut.images, sizes.images - tile.n0);
  tile.channels = smaller(cut.channels, sizes.channels - tile.c0);
  tile.p1 = smaller(tile.p0 + cut.span, sizes.pixels);
  return tile;
}

// (N,C) at a row of the tile.
SE_DEVICE std::int64_t entry(const Tile& tile, int row, int all_channels) {
  return std::int64_t(tile.image_of(row)) * all_channels + tile.channel_of(row);
}

// Every V numbers of the tile, where its rows lie side by side: start(n, c) gives where they begin,
// load(starts, p), then use(starts, row, p, raw); row is the (image, channel) of the first of them.
template <Layout layout, int V, int Batch, class Start, class Load, class Use>
SE_DEVICE void walk_tile(const Tile& tile, const Start& start, const Load& load, const Use& use) {
  if constexpr (layout == Layout::nchw) {
    const int loads = (tile.p1 - tile.p0) / V, rows = tile.rows(),
              lanes = smaller(power_of_two((loads + 3) / 4), thread_count()),
              lane = thread_index() % lanes;
    for (int row = thread_index() / lanes; row < rows; row += thread_count() / lanes) {
      const auto starts = start(tile.image_of(row), tile.channel_of(row));
      walk<Batch>(
          lane, loads, lanes, [&](int i) { return load(starts, tile.p0 + i * V); },
          [&](int i, const auto& raw) { use(starts, row, tile.p0 + i * V, raw); });
    }
  } else {
    const int columns = tile.channels / V, width = smaller(power_of_two(columns), thread_count()),
              rows = thread_count() / width;
    for (int k = 0; k < tile.images; ++k)
      for (int column = thread_index() % width; column < columns; column += width) {
        const int row = k * tile.channels + column * V;
        const auto starts = start(tile.n0 + k, tile.c0 + column * V);
        walk<Batch>(
            tile.p0 + thread_index() / width, tile.p1, rows, [&](int p) { return load(starts, p); },
            [&](int p, const auto& raw) { use(starts, row, p, raw); });
      }
  }
}

// Every V numbers of the tile's channels of each image, where they are one run of memory (nchw, all
// pixels): load(starts, i), then use(starts, k, i, raw), for the i-th number of the k-th image's
// run.
template <int V, int Batch, class Start, class Load, class Use>
SE_DEVICE void walk_runs(const Tile& tile, const Start& start, const Load& load, const Use& use) {
  const int run = tile.channels * tile.p1;
  for (int k = 0; k < tile.images; ++k) {
    const auto starts = start(tile.n0 + k, tile.c0);
    walk<Batch>(
        thread_index(), run / V, thread_count(), [&](int i) { return load(starts, i * V); },
        [&](int i, const auto& raw) { use(starts, k, i * V, raw); });
  }
}

SE_DEVICE int divide(int i, const Divisor& divisor) {
  return int(std::uint64_t(std::uint32_t(i)) * divisor.multiplier >> divisor.shift);
}

// The rows that V numbers of a run belong to, from the i-th on, `pixels` to a row; `first` more.
template <int V>
SE_DEVICE void rows_of_run(int i, const Divisor& pixels, int first, int (&rows)[V]) {
  int row = divide(i, pixels), rest = i - row * pixels.by;
  row += first;
  SE_UNROLL
  for (int j = 0; j < V; ++j) {
    rows[j] = row;
    if (++rest == pixels.by) ++row, rest = 0;
  }
}

// The rows that V numbers of a tile belong to where they lie side by side.
template <Layout layout, int V>
SE_DEVICE void rows_from(int row, int (&rows)[V]) {
  SE_UNROLL
  for (int j = 0; j < V; ++j) rows[j] = layout == Layout::nchw ? row : row + j;
}

// Every W numbers of the tile, flat or along its rows: start(n, c), load(starts, p), then
// use(starts, rows, p, raw) with the row of each of them.
template <Layout layout, int W, int Batch, bool flat, class Start, class Load, class Use>
SE_DEVICE void walk_numbers(const Tile& tile, const Divisor& by_pixels, const Start& start,
                            const Load& load, const Use& use) {
  if constexpr (flat)
    walk_runs<W, Batch>(tile, start, load, [&](const auto& at, int k, int i, const auto& raw) {
      int rows[W];
      rows_of_run<W>(i, by_pixels, k * tile.channels, rows);
      use(at, rows, i, raw);
    });
  else
    walk_tile<layout, W, Batch>(tile, start, load,
                                [&](const auto& at, int row, int p, const auto& raw) {
                                  int rows[W];
                                  rows_from<layout, W>(row, rows);
                                  use(at, rows, p, raw);
                                });
}

// run(width, flat) as the access asks.
template <class X, Layout layout, class Run>
SE_DEVICE void with_access(Access access, const Run& run) {
  constexpr int V = Number<X>::kVector;
  if constexpr (V > 1) {
    if (access == Access::vectors) return run(Width<V>{}, Flag<false>{});
    if constexpr (layout == Layout::nchw)
      if (access == Access::flat) return run(Width<V>{}, Flag<true>{});
  }
  run(Width<1>{}, Flag<false>{});
}

// A plane's numbers of those rows, in shared memory; 16 bytes at a time where the rows lie side by
// side (nhwc), for one at a time neighbouring threads would meet in one bank.
template <Layout layout, class A, int V>
SE_DEVICE void read_rows(const A* plane, const int (&rows)[V], A (&out)[V]) {
  if constexpr (layout == Layout::nhwc && V > 1) {
    SE_UNROLL
    for (int i = 0; i < V / 4; ++i) {
      const Vector16 v = *reinterpret_cast<const Vector16*>(plane + rows[0] + 4 * i);
      SE_UNROLL
      for (int j = 0; j < 4; ++j) out[4 * i + j] = word_to_float(v.words[j]);
    }
  } else {
    SE_UNROLL
    for (int j = 0; j < V; ++j) out[j] = plane[rows[j]];
  }
}

}  // namespace se_kernels::cuda
