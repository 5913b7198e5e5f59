// A reduction of every channel of a block's images: any sums of its pixels; the squeeze's are Σ,
// and for a maximum the largest x with its ties.
#pragma once

#include "number.cuh"

namespace se_kernels::cuda {

template <class A>
struct Sums {
  A total = 0, peak = -INFINITY, ties = 0;

  // A NaN replaces the peak, and is not replaced but by one.
  SE_DEVICE void add(A term, A x, bool tracks) {
    total += term;
    if (tracks) meet(x, A(1));
  }
  SE_DEVICE void meet(A other, A times) {
    if (other > peak || other != other)
      peak = other, ties = times;
    else if (other == peak)
      ties += times;
  }
  SE_DEVICE void merge(const Sums& other, bool tracks) {
    total += other.total;
    if (tracks && other.ties > 0) meet(other.peak, other.ties);
  }
  SE_DEVICE void exchange(int mask, bool tracks) {
    Sums other;
    other.total = shuffle_xor(total, mask);
    if (tracks) {
      // both halves merge in the same order
      const bool upper = (thread_index() & mask) != 0;
      other.peak = shuffle_xor(peak, mask), other.ties = shuffle_xor(ties, mask);
      if (upper) {
        Sums mine = *this;
        *this = other, other = mine;
      }
    }
    merge(other, tracks);
  }
};

// In shared memory, a number each for rows (image, channel) of the block; planes `size` apart.
template <class A>
struct Found {
  A* data;
  int size;
  bool tracks;
  SE_DEVICE void put(int at, const Sums<A>& sums) const {
    data[at] = sums.total;
    if (tracks) data[at + size] = sums.peak, data[at + 2 * size] = sums.ties;
  }
  SE_DEVICE Sums<A> get(int at) const {
    Sums<A> sums;
    sums.total = data[at];
    if (tracks) sums.peak = data[at + size], sums.ties = data[at + 2 * size];
    return sums;
  }
};

// The threads that share a row of so many loads, a power of two: about `each` loads each.
SE_DEVICE int lanes_for(int loads, int each = 4) {
  return smaller(power_of_two((loads + each - 1) / each), thread_count());
}

// What a thread collects of a row, or of each of V columns: collect.get(j) is the j-th's sums, with
// put, get, merge and exchange.
template <class S, int V>
struct Each {
  S sums[V];
  SE_DEVICE S get(int j) const { return sums[j]; }
};

// Rows whose numbers lie side by side (nchw), `lanes` threads to each: start(row) gives where a row
// begins, load(starts, i) what lies at its i-th load, add(collect, starts, row, i, raw) takes it
// in; then emit(row, sums) of each row, by one thread.
template <class Collect, int Batch, class A, class Start, class Load, class Add, class Emit>
SE_DEVICE void collect_rows(int rows, int loads, int lanes, A* scratch, const Start& start,
                            const Load& load, const Add& add, const Emit& emit) {
  const int lane = thread_index() % lanes, side_by_side = thread_count() / lanes;
  for (int first = 0; first < rows; first += side_by_side) {
    const int row = first + thread_index() / lanes;
    Collect collect;
    if (row < rows) {
      const auto starts = start(row);
      walk<Batch>(
          lane, loads, lanes, [&](int i) { return load(starts, i); },
          [&](int i, const auto& raw) { add(collect, starts, row, i, raw); });
    }
    auto sums = collect.get(0);
    for (int mask = smaller(lanes, kWarp) / 2; mask > 0; mask /= 2) sums.exchange(mask);
    if (lanes <= kWarp) {
      if (lane == 0 && row < rows) emit(row, sums);
      continue;
    }
    const int warp = thread_index() / kWarp, warps = lanes / kWarp, parts = thread_count() / kWarp;
    if (thread_index() % kWarp == 0) sums.put(scratch, parts, warp);
    block_barrier();
    if (lane == 0 && row < rows) {
      for (int other = 1; other < warps; ++other)
        sums.merge(decltype(sums)::get(scratch, parts, warp + other));
      emit(row, sums);
    }
    block_barrier();
  }
  block_barrier();
}

// Channels that lie side by side in each pixel (nhwc), V of them in a load, in the last fewer
// unless all are whole: start(column), load(starts, pixel), add(collect, starts, column, pixel,
// raw); then emit(channel, sums).
template <class Collect, int V, int Batch, bool whole, class A, class Start, class Load, class Add,
          class Emit>
SE_DEVICE void collect_columns(int channels, int first_pixel, int end_pixel, A* scratch,
                               const Start& start, const Load& load, const Add& add,
                               const Emit& emit) {
  using S = decltype(Collect{}.get(0));
  const int columns = (channels + V - 1) / V, threads = thread_count(),
            width = smaller(power_of_two(columns), threads), rows = threads / width,
            row = thread_index() / width;
  for (int first = 0; first < columns; first += width) {
    const int column = first + thread_index() % width;
    Collect collect;
    if (column < columns) {
      const auto starts = start(column);
      walk<Batch>(
          first_pixel + row, end_pixel, rows, [&](int p) { return load(starts, p); },
          [&](int p, const auto& raw) { add(collect, starts, column, p, raw); });
    }
    S sums[V];
    SE_UNROLL
    for (int j = 0; j < V; ++j) sums[j] = collect.get(j);
    if (rows == 1) {
      if (column >= columns) continue;
      SE_UNROLL
      for (int j = 0; j < V; ++j)
        if (whole || column * V + j < channels) emit(column * V + j, sums[j]);
      continue;
    }
    for (int mask = width; mask < kWarp; mask *= 2) {
      SE_UNROLL
      for (int j = 0; j < V; ++j) sums[j].exchange(mask);
    }
    // the only round: the rows, or warps of rows, side by side: (parts, width, V)
    const int parts = width < kWarp ? threads / kWarp : rows, size = parts * width * V,
              part = width < kWarp ? thread_index() / kWarp : row;
    if (width >= kWarp || thread_index() % kWarp < width) {
      SE_UNROLL
      for (int j = 0; j < V; ++j)
        sums[j].put(scratch, size, (part * width + thread_index() % width) * V + j);
    }
    block_barrier();
    for (int i = thread_index(); i < width * V; i += threads) {
      if (first * V + i >= channels) break;
      S total = S::get(scratch, size, i);
      for (int other = 1; other < parts; ++other)
        total.merge(S::get(scratch, size, other * width * V + i));
      emit(first * V + i, total);
    }
  }
  block_barrier();
}

// ---- of the squeeze

template <class A, bool tracks>
struct Tracked : Sums<A> {
  SE_DEVICE void put(A* data, int size, int at) const {
    Found<A>{data, size, tracks}.put(at, *this);
  }
  static SE_DEVICE Tracked get(A* data, int size, int at) {
    return {Found<A>{data, size, tracks}.get(at)};
  }
  SE_DEVICE void merge(const Tracked& other) { Sums<A>::merge(other, tracks); }
  SE_DEVICE void exchange(int mask) { Sums<A>::exchange(mask, tracks); }
};

// terms(starts, row, i, raw, term, x): the V terms and numbers of what was loaded.
template <int V, int Batch, bool tracks, class A, class Start, class Load, class Terms>
SE_DEVICE void reduce_rows_tracking(int rows, int length, const Found<A>& found, A* scratch,
                                    const Start& start, const Load& load, const Terms& terms) {
  using Collect = Each<Tracked<A, tracks>, 1>;
  collect_rows<Collect, Batch>(
      rows, length / V, lanes_for(length / V), scratch, start, load,
      [&](Collect& collect, const auto& starts, int row, int i, const auto& raw) {
        A term[V], x[V];
        terms(starts, row, i, raw, term, x);
        SE_UNROLL
        for (int j = 0; j < V; ++j) collect.sums[0].add(term[j], x[j], tracks);
      },
      [&](int row, const Sums<A>& sums) {
        Found<A>{found.data, found.size, tracks}.put(row, sums);
      });
}

// The channels' numbers go to found from `at` on.
template <int V, int Batch, bool tracks, class A, class Start, class Load, class Terms>
SE_DEVICE void reduce_columns_tracking(int channels, int first_pixel, int end_pixel, int at,
                                       const Found<A>& found, A* scratch, const Start& start,
                                       const Load& load, const Terms& terms) {
  using Collect = Each<Tracked<A, tracks>, V>;
  collect_columns<Collect, V, Batch, true>(
      channels, first_pixel, end_pixel, scratch, start, load,
      [&](Collect& collect, const auto& starts, int column, int p, const auto& raw) {
        A term[V], x[V];
        terms(starts, column, p, raw, term, x);
        SE_UNROLL
        for (int j = 0; j < V; ++j) collect.sums[j].add(term[j], x[j], tracks);
      },
      [&](int channel, const Sums<A>& sums) {
        Found<A>{found.data, found.size, tracks}.put(at + channel, sums);
      });
}

// With what the squeeze needs, and no more registers: loads under way make room for the peaks.
template <int V, int Batch, class A, class Start, class Load, class Terms>
SE_DEVICE void reduce_rows(int rows, int length, const Found<A>& found, A* scratch,
                           const Start& start, const Load& load, const Terms& terms) {
  if (found.tracks)
    reduce_rows_tracking<V, 1, true>(rows, length, found, scratch, start, load, terms);
  else
    reduce_rows_tracking<V, Batch, false>(rows, length, found, scratch, start, load, terms);
}
template <int V, int Batch, class A, class Start, class Load, class Terms>
SE_DEVICE void reduce_columns(int channels, int first_pixel, int end_pixel, int at,
                              const Found<A>& found, A* scratch, const Start& start,
                              const Load& load, const Terms& terms) {
  if (found.tracks)
    reduce_columns_tracking<V, 1, true>(channels, first_pixel, end_pixel, at, found, scratch, start,
                                        load, terms);
  else
    reduce_columns_tracking<V, Batch, false>(channels, first_pixel, end_pixel, at, found, scratch,
                                             start, load, terms);
}

}  // namespace se_kernels::cuda
