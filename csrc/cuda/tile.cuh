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

// Elements from the start of t to image n, channel c, pixel p.
template <Layout layout>
SE_DEVICE std::int64_t place(const Images& t, int n, int c, int p) {
  const std::int64_t image = n * t.image;
  return layout == Layout::nchw ? image + c * t.row + p : image + p * t.row + c;
}

// (N,C) at a row of the tile.
SE_DEVICE std::int64_t entry(const Tile& tile, int row, int all_channels) {
  return std::int64_t(tile.image_of(row)) * all_channels + tile.channel_of(row);
}

// Every V numbers of the tile, where its rows lie side by side: load(row, n, c, p), then
// use(row, n, c, p, raw); row is the (image, channel) of the first of them.
template <Layout layout, int V, int Batch, class Load, class Use>
SE_DEVICE void walk_tile(const Tile& tile, const Load& load, const Use& use) {
  if constexpr (layout == Layout::nchw) {
    const int loads = (tile.p1 - tile.p0) / V, rows = tile.rows(),
              lanes = smaller(power_of_two((loads + 3) / 4), thread_count()),
              lane = thread_index() % lanes;
    for (int row = thread_index() / lanes; row < rows; row += thread_count() / lanes) {
      const int n = tile.image_of(row), c = tile.channel_of(row);
      walk<Batch>(
          lane, loads, lanes, [&](int i) { return load(row, n, c, tile.p0 + i * V); },
          [&](int i, const auto& raw) { use(row, n, c, tile.p0 + i * V, raw); });
    }
  } else {
    const int columns = tile.channels / V, width = smaller(power_of_two(columns), thread_count()),
              rows = thread_count() / width;
    for (int k = 0; k < tile.images; ++k)
      for (int column = thread_index() % width; column < columns; column += width) {
        const int n = tile.n0 + k, row = k * tile.channels + column * V, c = tile.c0 + column * V;
        walk<Batch>(
            tile.p0 + thread_index() / width, tile.p1, rows,
            [&](int p) { return load(row, n, c, p); },
            [&](int p, const auto& raw) { use(row, n, c, p, raw); });
      }
  }
}

// Every V numbers of the tile's channels of each image, where they are one run of memory (nchw, all
// pixels): load(k, i), then use(k, i, raw), for the i-th number of the k-th image's run.
template <int V, int Batch, class Load, class Use>
SE_DEVICE void walk_runs(int images, int run, const Load& load, const Use& use) {
  for (int k = 0; k < images; ++k)
    walk<Batch>(
        thread_index(), run / V, thread_count(), [&](int i) { return load(k, i * V); },
        [&](int i, const auto& raw) { use(k, i * V, raw); });
}

// The rows that V numbers of a run belong to, from the i-th on, `pixels` to a row.
template <int V>
SE_DEVICE void rows_of_run(int i, int pixels, int (&rows)[V]) {
  int row = i / pixels, rest = i - row * pixels;
  SE_UNROLL
  for (int j = 0; j < V; ++j) {
    rows[j] = row;
    if (++rest == pixels) ++row, rest = 0;
  }
}

}  // namespace se_kernels::cuda
