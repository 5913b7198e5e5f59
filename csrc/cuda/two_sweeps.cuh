// What forward and backward share where a launch sweeps twice: parameters, shared memory, the
// excitation's items. Two readings of x, the second out of the L2.
#pragma once

#include "excite.cuh"
#include "reduce.cuh"
#include "schedule.cuh"
#include "tile.cuh"

namespace se_kernels::cuda {

// All numbers are in Sum<X>. parts (planes, N, splits, C): what tiles found in their pixels, where
// there are several splits; partials (groups, blocks, images, R): their parts of the first FC.
struct Passing {
  void *parts, *partials, *hidden;  // hidden (N,R): h forward, da backward
  std::uint32_t* counters;          // 1 + groups (2 + blocks): see the accessors
  SE_DEVICE std::uint32_t* tickets() const { return counters; }
  SE_DEVICE std::uint32_t* squeezed(int group) const { return counters + 1 + group; }
  SE_DEVICE std::uint32_t* excited(int group, const Cut& cut) const {
    return counters + 1 + cut.groups + group;
  }
  SE_DEVICE std::uint32_t* parted(int group, int block, const Cut& cut) const {
    return counters + 1 + 2 * cut.groups + std::int64_t(group) * cut.blocks + block;
  }
};

template <class A>
struct Room {
  int* word;
  A *found, *scratch;  // found: four planes of the tile's rows
  unsigned char* work;
  int plane;
  SE_DEVICE Room(const Shared& shared, const Cut& cut) {
    unsigned char* memory = shared_memory();
    word = reinterpret_cast<int*>(memory);
    found = reinterpret_cast<A*>(memory + shared.found);
    scratch = reinterpret_cast<A*>(memory + shared.scratch);
    work = memory + shared.work;
    plane = cut.images * cut.channels;
  }
};

// What all splits of the tile's pixels found, in place, each row by the thread of its number; false
// where this block is not the last of them to come.
template <class A>
SE_DEVICE bool gather(const Passing& passing, const Found<A>& found, const Tile& tile, int group,
                      int block, int split, const Sizes& sizes, const Cut& cut, int* word) {
  if (cut.splits == 1) return true;
  A* parts = static_cast<A*>(passing.parts);
  const std::int64_t plane = std::int64_t(sizes.images) * cut.splits * sizes.channels;
  const auto at = [&](int row, int part) {
    return (std::int64_t(tile.image_of(row)) * cut.splits + part) * sizes.channels +
           tile.channel_of(row);
  };
  for (int row = thread_index(); row < tile.rows(); row += thread_count()) {
    const Sums<A> sums = found.get(row);
    parts[at(row, split)] = sums.total;
    if (found.tracks) {
      parts[at(row, split) + plane] = sums.peak;
      parts[at(row, split) + 2 * plane] = sums.ties;
    }
  }
  if (!completes(passing.parted(group, block, cut), cut.splits, word)) return false;
  for (int row = thread_index(); row < tile.rows(); row += thread_count()) {
    Sums<A> sums;
    for (int part = 0; part < cut.splits; ++part) {
      Sums<A> other;
      const std::int64_t from = at(row, part);
      other.total = load_shared_result(parts + from);
      if (found.tracks) {
        other.peak = load_shared_result(parts + from + plane);
        other.ties = load_shared_result(parts + from + 2 * plane);
      }
      sums.merge(other, found.tracks);
    }
    found.put(row, sums);
  }
  return true;
}

// This tile's part of the first FC goes to the others of its group.
template <class A>
SE_DEVICE A* partials_of(const Passing& passing, int group, int block, const Sizes& sizes,
                         const Cut& cut) {
  return static_cast<A*>(passing.partials) +
         (std::int64_t(group) * cut.blocks + block) * cut.images * sizes.reduced;
}

// An item of the excitation: use(i, n R + r, Σ over the blocks) for its numbers i of (images, R).
template <class A, class Use>
SE_DEVICE void sum_partials(const Passing& passing, int group, int index, const Sizes& sizes,
                            const Cut& cut, A* scratch, const Use& use) {
  const int size = smaller(cut.images, sizes.images - group * cut.images) * sizes.reduced,
            stride = cut.images * sizes.reduced, lanes = cut.excite_size,
            parts = thread_count() / lanes, lane = thread_index() % lanes,
            part = thread_index() / lanes, i = index * lanes + lane;
  const A* partials = partials_of<A>(passing, group, 0, sizes, cut);
  A total = 0;
  if (i < size)
    walk<4>(
        part, cut.blocks, parts,
        [&](int block) { return load_shared_result(partials + std::int64_t(block) * stride + i); },
        [&](int, A v) { total += v; });
  scratch[thread_index()] = total;
  block_barrier();
  if (part == 0 && i < size) {
    for (int other = 1; other < parts; ++other) total += scratch[other * lanes + lane];
    use(i, std::int64_t(group) * stride + i, total);
  }
}

// The second FC of a tile, a chunk of hidden (N,R) in shared memory at a time: product(chunk in
// shared memory, its first r, how many); what the last one wrote is seen after.
template <class A, class Product>
SE_DEVICE void for_hidden(const Passing& passing, const Tile& tile, const Sizes& sizes,
                          const Cut& cut, A* chunk, const Product& product) {
  const A* hidden = static_cast<const A*>(passing.hidden);
  for (int r0 = 0; r0 < sizes.reduced; r0 += cut.chunk) {
    const int size = smaller(cut.chunk, sizes.reduced - r0);
    for (int i = thread_index(); i < tile.images * size; i += thread_count())
      chunk[i / size * cut.chunk + i % size] = load_shared_result(
          hidden + std::int64_t(tile.n0 + i / size) * sizes.reduced + r0 + i % size);
    block_barrier();
    product(chunk, r0, size);
    block_barrier();
  }
}

}  // namespace se_kernels::cuda
