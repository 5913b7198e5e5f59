// One pass over x in a thread-block cluster's shared memory: what forward and backward share. A
// block holds its slice of each of some images, of nchw some channels, of nhwc some pixels; a slice
// is one run of memory in both.
#pragma once

#include "excite.cuh"
#include "plan.h"
#include "squeeze.cuh"

namespace se_kernels::cuda {

#if SE_HAS_CLUSTERS

// This block's part, and its shared memory.
template <class X, Layout layout>
struct Block {
  using A = Sum<X>;
  const Sizes& sizes;
  const Slices& slices;
  int rank, cluster;
  int c0, channels;  // of the excitation: its own
  int first, count;  // of an image: its run of elements
  std::uint64_t* arrivals;
  A *found, *own, *own_s, *partial, *hidden, *scratch;
  unsigned char *x, *slots;
  int slot_bytes, plane;

  SE_DEVICE Block(const Sizes& sizes_, const Slices& slices_, const SlicesShared& shared)
      : sizes(sizes_), slices(slices_) {
    rank = slices.ranks > 1 ? cluster_rank() : 0;
    cluster = block_index() / slices.ranks;
    c0 = smaller(rank * slices.channels, sizes.channels);
    channels = smaller(slices.channels, sizes.channels - c0);
    if (layout == Layout::nchw) {
      first = c0 * sizes.pixels, count = channels * sizes.pixels;
    } else {
      const int p0 = smaller(rank * slices.pixels, sizes.pixels);
      first = p0 * sizes.channels;
      count = smaller(slices.pixels, sizes.pixels - p0) * sizes.channels;
    }
    unsigned char* memory = shared_memory();
    arrivals = reinterpret_cast<std::uint64_t*>(memory + shared.arrivals);
    found = reinterpret_cast<A*>(memory + shared.found);
    own = reinterpret_cast<A*>(memory + shared.own);
    own_s = own + slices.images * slices.channels;
    partial = reinterpret_cast<A*>(memory + shared.partial);
    hidden = reinterpret_cast<A*>(memory + shared.hidden);
    scratch = reinterpret_cast<A*>(memory + shared.scratch);
    x = memory + shared.x, slots = memory + shared.slots;
    slot_bytes = shared.slot_bytes;
    plane = slices.images * (layout == Layout::nchw ? slices.channels : sizes.channels);
  }

  SE_DEVICE int turns() const { return (sizes.images + slices.images - 1) / slices.images; }
  SE_DEVICE int images_of(int turn) const {
    return smaller(slices.images, sizes.images - turn * slices.images);
  }
  SE_DEVICE unsigned char* slot(int k) const { return slots + std::size_t(k) * slot_bytes; }
  SE_DEVICE int chunk() const { return slices.chunk / int(sizeof(X)); }
  SE_DEVICE int own_at(int k, int c) const { return k * slices.channels + c; }

  // One thread: arrivals of each slot, and of x behind them.
  SE_DEVICE void start() const {
    if (thread_index() == 0)
      for (int k = 0; k <= slices.images; ++k) start_arrivals(arrivals + k);
    block_barrier();
  }

  // The rows of own (nchw) or of a plane of all channels (nhwc) that V numbers of slot k belong to.
  template <int V>
  SE_DEVICE void rows_of(int k, int i, int (&rows)[V]) const {
    if constexpr (layout == Layout::nchw) {
      rows_of_run<V>(i, sizes.by_pixels, own_at(k, 0), rows);
    } else {
      const int c = i - divide(i, sizes.by_channels) * sizes.channels;
      rows_from<layout, V>(k * sizes.channels + c, rows);
    }
  }
  SE_DEVICE int channel_of(int row) const {
    return layout == Layout::nchw ? c0 + row % slices.channels : row % sizes.channels;
  }

  // The memory of image n at this block's run; null where t is absent.
  SE_DEVICE unsigned char* run_of(const Images& t, int n) const {
    return t.data ? t.data + (n * t.image + first) * std::int64_t(sizeof(X)) : nullptr;
  }

  // One thread: image n's elements from `begin` of the run, a chunk of them, on their way to slot
  // k.
  SE_DEVICE void fetch(const Images& t, int n, int k, int begin) const {
    if (begin == 0) expect_bytes(arrivals + k, std::uint32_t(count * int(sizeof(X))));
    const int size = smaller(chunk(), count - begin);
    bulk_load(slot(k) + std::size_t(begin) * sizeof(X),
              run_of(t, n) + std::size_t(begin) * sizeof(X), std::uint32_t(size * int(sizeof(X))),
              arrivals + k);
  }
  SE_DEVICE void fetch_all(const Images& t, int turn) const {
    if (thread_index() == 0)
      for (int k = 0; k < images_of(turn); ++k)
        for (int begin = 0; begin < count; begin += chunk())
          fetch(t, turn * slices.images + k, k, begin);
  }
  // All: x of image n on its way to its place, whatever lay there is read.
  SE_DEVICE void fetch_x(const Images& t, int n) const {
    if (thread_index() != 0 || count == 0) return;
    std::uint64_t* come = arrivals + slices.images;
    order_before_bulk_load();
    expect_bytes(come, std::uint32_t(count * int(sizeof(X))));
    bulk_load(x, run_of(t, n), std::uint32_t(count * int(sizeof(X))), come);
  }
  SE_DEVICE void wait_x(int fetched) const {
    if (count > 0) wait_arrivals(arrivals + slices.images, std::uint32_t(fetched & 1));
  }
  SE_DEVICE void wait_slot(int k, int round) const {
    if (count > 0) wait_arrivals(arrivals + k, std::uint32_t(round & 1));
  }

  // start(n) for each slot's image, load(starts, k, i), then use(starts, k, i, raw), for every V
  // numbers of slot k, from the i-th on; a chunk that is done is filled with the image that comes
  // next there. written: by this block's threads.
  template <int V, int Batch, class Start, class Load, class Use>
  SE_DEVICE void walk_slots(const Images& t, int turn, bool written, const Start& start,
                            const Load& load, const Use& use) const {
    const int next = turn + slices.clusters;
    for (int k = 0; k < images_of(turn); ++k) {
      const auto starts = start(turn * slices.images + k);
      for (int begin = 0; begin < count; begin += chunk()) {
        const int end = smaller(begin + chunk(), count);
        walk<Batch>(
            begin / V + thread_index(), end / V, thread_count(),
            [&](int i) { return load(starts, k, i * V); },
            [&](int i, const auto& raw) { use(starts, k, i * V, raw); });
        if (next >= turns()) continue;
        if (written) order_before_bulk_load();
        block_barrier();
        const int n = next * slices.images + k;
        if (thread_index() == 0 && n < sizes.images) {
          order_before_bulk_load();
          fetch(t, n, k, begin);
        }
      }
    }
  }

  // The cluster's barrier in two halves: nothing where a block is alone.
  SE_DEVICE void arrive() const {
    if (slices.ranks > 1) cluster_arrive();
  }
  SE_DEVICE void wait() const {
    if (slices.ranks > 1) cluster_wait();
  }
  // Both; a block that is alone joins its own threads.
  SE_DEVICE void join() const {
    if (slices.ranks > 1)
      cluster_arrive(), cluster_wait();
    else
      block_barrier();
  }

  // nhwc: of image k and own channel c, what all blocks found in their pixels.
  SE_DEVICE Sums<A> gather(int k, int c, bool tracks) const {
    const A* at = found + k * sizes.channels + c0 + c;
    Sums<A> sums;
    for (int other = 0; other < slices.ranks; ++other) {
      Sums<A> part;
      part.total = load_remote(at, other);
      if (tracks) {
        part.peak = load_remote(at + plane, other);
        part.ties = load_remote(at + 2 * plane, other);
      }
      sums.merge(part, tracks);
    }
    return sums;
  }

  // Σ over the blocks of partial, at its i-th number.
  SE_DEVICE A sum_partials(int i) const {
    A total = 0;
    for (int other = 0; other < slices.ranks; ++other) total += load_remote(partial + i, other);
    return total;
  }

  // nhwc: own (images, channels) of every block, put together in (images, C).
  SE_DEVICE void gather_own(int images, A* to) const {
    for (int i = thread_index(); i < images * sizes.channels; i += thread_count()) {
      const int k = divide(i, sizes.by_channels), c = i - k * sizes.channels;
      to[i] = load_remote(own + own_at(k, c % slices.channels), c / slices.channels);
    }
  }
};

#endif

}  // namespace se_kernels::cuda
