// A batch norm before the block: what its kernels are told, and what they share. Each is one sweep
// over the images, eight numbers of a row (nchw) or of a pixel (nhwc) at a time: a byte of the
// mask.
#pragma once

#include "excite.cuh"
#include "launch.h"
#include "number.cuh"
#include "plan.h"
#include "reduce.cuh"
#include "runtime.cuh"
#include "schedule.cuh"
#include "tile.cuh"

namespace se_kernels::cuda {

constexpr int kOctet = 8;
constexpr int kMostSums = 5;  // numbers that a sweep finds of each (n, c)

// mean, scale, bias, slope, offset (C), s, d (N,C) in Sum<X>. found: planes (N,C) of what a
// reduction gives, of double for the moments. parts (planes, N, splits, C) and counters (groups,
// blocks), zero at the launch: where there are several splits.
struct NormParameters {
  Sizes sizes;
  Cut cut;
  Access access;
  Shared shared;
  bool reversed;  // the last tile first
  Pre pre;
  Images x, residual, dy, y, dr, dx;  // dy: g of squeeze_backward
  std::uint8_t* mask;
  const void *mean, *scale, *bias, *s, *d, *slope, *offset;
  bool relu;
  void* found[kMostSums];
  void* parts;
  std::uint32_t* counters;
};

enum class NormKernel { moments, squeeze, scale, scale_backward, squeeze_backward };

// The kernels of one type of x, of each direction.
template <class X>
void launch_norm_forward(NormKernel, const NormParameters&, Layout, const Gpu&, void* stream);
template <class X>
void launch_norm_backward(NormKernel, const NormParameters&, Layout, const Gpu&, void* stream);

// kernel(parameters), a block a tile.
inline void launch_norm(const std::string& name, void (*kernel)(NormParameters),
                        const NormParameters& p, const Gpu& gpu, void* stream) {
  const Cut& cut = p.cut;
  const Shape shape{name, cut.groups * cut.blocks * cut.splits, gpu.threads, 1, p.shared.bytes};
  launch(kernel, p, shape, stream);
}

// ---- eight numbers

// Where they begin: pixel p of channel c of image n. `here` of them are to be read; of nchw, `left`
// are of channel c and the others of the next (flat).
struct Octet {
  int n, c, p, here, left;
};

// How many eights are loaded at a time, where that is so many bytes of each tensor.
template <class X, bool wide, int bytes>
constexpr int kEights = wide ? bytes / int(kOctet * sizeof(X)) : 1;

// Blocks that a multiprocessor has room for at least: eight numbers of `any` take many registers.
template <class X>
constexpr int kNormBlocks = std::is_same_v<X, Any> ? 1 : 2;

template <class X, Layout layout>
SE_DEVICE unsigned char* place_of(const Images& t, const Octet& at) {
  return pixel_of<X, layout>(t, start_of<X, layout>(t, at.n, at.c), at.p);
}

// As they lie: 16 bytes at a time, or a number at a time.
template <class X, bool wide>
struct Eight {
  Vector16 words[kOctet * sizeof(X) / sizeof(Vector16)];
};
template <class X>
struct Eight<X, false> {
  Sum<X> numbers[kOctet];
};

template <class X, Layout layout, bool wide, Reuse reuse>
SE_DEVICE Eight<X, wide> load_eight(const Images& t, const Octet& at) {
  const unsigned char* from = place_of<X, layout>(t, at);
  Eight<X, wide> out;
  if constexpr (wide) {
    SE_UNROLL
    for (int i = 0; i < int(kOctet * sizeof(X) / sizeof(Vector16)); ++i)
      out.words[i] = load_raw<X, Number<X>::kVector, reuse>(from + i * sizeof(Vector16), t.type).v;
  } else {
    with_type<X>(t.type, [&](auto number) {
      const auto* numbers = reinterpret_cast<const decltype(number)*>(from);
      SE_UNROLL
      for (int j = 0; j < kOctet; ++j)
        out.numbers[j] = j < at.here ? Sum<X>(widen(numbers[j])) : Sum<X>(0);
    });
  }
  return out;
}

template <class X, bool wide>
SE_DEVICE void unpack_eight(const Eight<X, wide>& raw, Sum<X> (&v)[kOctet]) {
  if constexpr (wide) {
    constexpr int V = Number<X>::kVector;
    SE_UNROLL
    for (int i = 0; i < kOctet / V; ++i) {
      Sum<X> some[V];
      unpack<X, V>({raw.words[i]}, some);
      SE_UNROLL
      for (int j = 0; j < V; ++j) v[i * V + j] = some[j];
    }
  } else {
    SE_UNROLL
    for (int j = 0; j < kOctet; ++j) v[j] = raw.numbers[j];
  }
}

template <class X>
SE_DEVICE Eight<X, true> pack_eight(const Sum<X> (&v)[kOctet]) {
  constexpr int V = Number<X>::kVector;
  Eight<X, true> out;
  SE_UNROLL
  for (int i = 0; i < kOctet / V; ++i) {
    Sum<X> some[V];
    SE_UNROLL
    for (int j = 0; j < V; ++j) some[j] = v[i * V + j];
    out.words[i] = pack<X, V>(some);
  }
  return out;
}

template <class X, Layout layout, bool wide, Reuse reuse>
SE_DEVICE void store_eight(const Images& t, const Octet& at, const Sum<X> (&v)[kOctet]) {
  unsigned char* to = place_of<X, layout>(t, at);
  if constexpr (wide) {
    const Eight<X, true> packed = pack_eight<X>(v);
    SE_UNROLL
    for (int i = 0; i < kOctet / Number<X>::kVector; ++i) {
      if constexpr (reuse == Reuse::keep)
        store_keep(to + i * sizeof(Vector16), packed.words[i]);
      else
        store_stream(to + i * sizeof(Vector16), packed.words[i]);
    }
  } else {
    with_type<X>(t.type, [&](auto number) {
      auto* numbers = reinterpret_cast<decltype(number)*>(to);
      SE_UNROLL
      for (int j = 0; j < kOctet; ++j)
        if (j < at.here) narrow(v[j], numbers[j]);
    });
  }
}

// ---- a number of each channel

// The channels of eight numbers, or of one: one; each its own; the first `left` of one, the others
// of the next.
enum class Channels { one, each, two };

template <class A, Channels channels>
struct PerChannel {
  A v;
  SE_DEVICE A operator[](int) const { return v; }
};
template <class A>
struct PerChannel<A, Channels::each> {
  A v[kOctet];
  SE_DEVICE A operator[](int j) const { return v[j]; }
};
template <class A>
struct PerChannel<A, Channels::two> {
  A v, next;
  int left;
  SE_DEVICE A operator[](int j) const { return j < left ? v : next; }
};

// Of `from` (C).
template <class A, Channels channels, bool wide>
SE_DEVICE PerChannel<A, channels> per_channel(const void* from, const Octet& at) {
  const A* first = static_cast<const A*>(from) + at.c;
  if constexpr (channels == Channels::one) {
    return {*first};
  } else if constexpr (channels == Channels::two) {
    return {*first, first[at.left < kOctet ? 1 : 0], at.left};
  } else {
    PerChannel<A, channels> out;
    if constexpr (wide) {
      SE_UNROLL
      for (int i = 0; i < kOctet / 4; ++i) {
        const Vector16 some = reinterpret_cast<const Vector16*>(first)[i];
        SE_UNROLL
        for (int j = 0; j < 4; ++j) out.v[4 * i + j] = word_to_float(some.words[j]);
      }
    } else {
      SE_UNROLL
      for (int j = 0; j < kOctet; ++j) out.v[j] = j < at.here ? first[j] : A(0);
    }
    return out;
  }
}
template <class A>
SE_DEVICE const void* image_of(const void* from, int n, const Sizes& sizes) {  // of (N,C)
  return static_cast<const A*>(from) + std::int64_t(n) * sizes.channels;
}

// ---- the mask

SE_DEVICE int mask_row_bytes(Layout layout, const Sizes& sizes) {
  return ((layout == Layout::nchw ? sizes.pixels : sizes.channels) + kOctet - 1) / kOctet;
}

// The byte of eight numbers that have one.
template <Layout layout>
SE_DEVICE std::int64_t mask_place(const Octet& at, const Sizes& sizes) {
  const std::int64_t bytes = mask_row_bytes(layout, sizes);
  if constexpr (layout == Layout::nchw)
    return (std::int64_t(at.n) * sizes.channels + at.c) * bytes + at.p / kOctet;
  else
    return (std::int64_t(at.n) * sizes.pixels + at.p) * bytes + at.c / kOctet;
}

// A bit for each of eight numbers; all where there is no mask. flat: their row starts anywhere.
template <Layout layout, bool flat>
SE_DEVICE unsigned load_mask(const std::uint8_t* mask, const Octet& at, const Sizes& sizes) {
  if (!mask) return 0xffu;
  const std::uint8_t* from = mask + mask_place<layout>(at, sizes);
  if constexpr (!flat) return *from;
  const int row_bytes = mask_row_bytes(layout, sizes), byte = at.p / kOctet;
  unsigned bits = from[0];
  if (byte + 1 < row_bytes) bits |= unsigned(from[1]) << kOctet;
  bits >>= at.p % kOctet;
  if (at.left < kOctet) bits |= unsigned(from[row_bytes - byte]) << at.left;  // past a row: 0
  return bits;
}

template <class A>
SE_DEVICE void apply_mask(unsigned bits, A (&g)[kOctet]) {
  SE_UNROLL
  for (int j = 0; j < kOctet; ++j) g[j] = bits >> j & 1u ? g[j] : A(0);
}

// ---- the norm and its activation

SE_DEVICE float fast_sigmoid(float v) { return reciprocal(1.f + std::exp(-v)); }
SE_DEVICE double fast_sigmoid(double v) { return sigmoid(v); }

// v = pre(t), in place.
template <class A, int W>
SE_DEVICE void activate_norm(Pre pre, A (&t)[W]) {
  switch (pre) {
    case Pre::identity:
      break;
    case Pre::relu:
      SE_UNROLL
      for (int j = 0; j < W; ++j) t[j] = t[j] <= A(0) ? A(0) : t[j];
      break;
    case Pre::silu:
      SE_UNROLL
      for (int j = 0; j < W; ++j) t[j] *= fast_sigmoid(t[j]);
      break;
    case Pre::hardswish:
      SE_UNROLL
      for (int j = 0; j < W; ++j) t[j] *= clamp_0_6(t[j] + A(3)) * A(1.0 / 6);
      break;
  }
}

// v = pre(t) and slope = pre'(t); a bit for each that is closed: not even an infinite gradient
// passes.
template <class A, int W>
SE_DEVICE unsigned differentiate_norm(Pre pre, const A (&t)[W], A (&v)[W], A (&slope)[W]) {
  unsigned closed = 0;
  SE_UNROLL
  for (int j = 0; j < W; ++j) v[j] = t[j], slope[j] = 1;
  switch (pre) {
    case Pre::identity:
      break;
    case Pre::relu:
      SE_UNROLL
      for (int j = 0; j < W; ++j)
        if (t[j] <= A(0)) v[j] = slope[j] = 0, closed |= 1u << j;
      break;
    case Pre::silu:
      SE_UNROLL
      for (int j = 0; j < W; ++j) {
        const A open = fast_sigmoid(t[j]);
        v[j] = t[j] * open, slope[j] = open * (A(1) + t[j] * (A(1) - open));
      }
      break;
    case Pre::hardswish:
      SE_UNROLL
      for (int j = 0; j < W; ++j) {
        v[j] = t[j] * (clamp_0_6(t[j] + A(3)) * A(1.0 / 6));
        if (t[j] <= A(-3))
          slope[j] = 0, closed |= 1u << j;
        else if (!(t[j] >= A(3)))  // NaN stays
          slope[j] = t[j] * A(1.0 / 3) + A(0.5);
      }
      break;
  }
  return closed;
}

// ---- the tiles, of one image each

// The i-th eight of a row of nchw; eight channels of a pixel of nhwc.
SE_DEVICE Octet octet_of_row(const Tile& tile, int row, int i) {
  const int p = tile.p0 + i * kOctet;
  return {tile.n0, tile.c0 + row, p, smaller(kOctet, tile.p1 - p), kOctet};
}
SE_DEVICE Octet octet_of_column(const Tile& tile, int column, int p) {
  const int c = column * kOctet;
  return {tile.n0, tile.c0 + c, p, smaller(kOctet, tile.channels - c), kOctet};
}

// Every eight numbers of the tile: begin(at) what is the same along its rows or columns, load(at),
// then use(begun, at, raw). flat: nchw, all pixels, the tile's rows of an image are one run of
// memory.
template <class X, Layout layout, bool flat, int Batch, class Begin, class Load, class Use>
SE_DEVICE void walk_octets(const Tile& tile, const Sizes& sizes, const Begin& begin,
                           const Load& load, const Use& use) {
  if constexpr (flat) {
    const auto at = [&](int i) {
      const int row = divide(i * kOctet, sizes.by_pixels), p = i * kOctet - row * sizes.pixels;
      return Octet{tile.n0, tile.c0 + row, p, kOctet, smaller(kOctet, sizes.pixels - p)};
    };
    walk<Batch>(
        thread_index(), tile.channels * tile.p1 / kOctet, thread_count(),
        [&](int i) { return load(at(i)); },
        [&](int i, const auto& raw) {
          const Octet octet = at(i);
          use(begin(octet), octet, raw);
        });
  } else if constexpr (layout == Layout::nchw) {
    const int loads = (tile.p1 - tile.p0 + kOctet - 1) / kOctet, lanes = lanes_for(loads),
              lane = thread_index() % lanes;
    for (int row = thread_index() / lanes; row < tile.channels; row += thread_count() / lanes) {
      const auto at = [&](int i) { return octet_of_row(tile, row, i); };
      const auto begun = begin(at(0));
      walk<Batch>(
          lane, loads, lanes, [&](int i) { return load(at(i)); },
          [&](int i, const auto& raw) { use(begun, at(i), raw); });
    }
  } else {
    const int columns = (tile.channels + kOctet - 1) / kOctet,
              width = smaller(power_of_two(columns), thread_count()), rows = thread_count() / width;
    for (int column = thread_index() % width; column < columns; column += width) {
      const auto at = [&](int p) { return octet_of_column(tile, column, p); };
      const auto begun = begin(at(tile.p0));
      walk<Batch>(
          tile.p0 + thread_index() / width, tile.p1, rows, [&](int p) { return load(at(p)); },
          [&](int p, const auto& raw) { use(begun, at(p), raw); });
    }
  }
}

// The same where each row's sums are wanted: use(collect, begun, at, raw), then emit(c, sums).
// Collect<A, 1> is of a row's numbers, Collect<A, 8> of eight channels'.
template <class X, Layout layout, bool wide, int Batch, template <class, int> class Collect,
          class Begin, class Load, class Use, class Emit>
SE_DEVICE void reduce_octets(const Tile& tile, Sum<X>* scratch, const Begin& begin,
                             const Load& load, const Use& use, const Emit& emit) {
  using A = Sum<X>;
  using Begun = decltype(begin(Octet{}));
  struct Starts {
    int row;  // or column
    Begun begun;
  };
  const auto finish = [&](int channel, const auto& sums) { emit(tile.c0 + channel, sums); };
  if constexpr (layout == Layout::nchw) {
    const int loads = (tile.p1 - tile.p0 + kOctet - 1) / kOctet;
    collect_rows<Collect<A, 1>, Batch>(
        tile.channels, loads, lanes_for(loads), scratch,
        [&](int row) { return Starts{row, begin(octet_of_row(tile, row, 0))}; },
        [&](const Starts& starts, int i) { return load(octet_of_row(tile, starts.row, i)); },
        [&](auto& collect, const Starts& starts, int row, int i, const auto& raw) {
          use(collect, starts.begun, octet_of_row(tile, row, i), raw);
        },
        finish);
  } else {
    collect_columns<Collect<A, kOctet>, kOctet, Batch, wide>(
        tile.channels, tile.p0, tile.p1, scratch,
        [&](int column) { return Starts{column, begin(octet_of_column(tile, column, tile.p0))}; },
        [&](const Starts& starts, int p) { return load(octet_of_column(tile, starts.row, p)); },
        [&](auto& collect, const Starts& starts, int column, int p, const auto& raw) {
          use(collect, starts.begun, octet_of_column(tile, column, p), raw);
        },
        finish);
  }
}

// The same where a row starts anywhere and what is summed lies in shared memory, one row after the
// other (nchw, all pixels): load(i) gives the i-th number, use(collect, begun, raw) takes it in.
template <int Batch, class Collect, class A, class Begin, class Load, class Use, class Emit>
SE_DEVICE void reduce_staged(const Tile& tile, A* scratch, const Begin& begin, const Load& load,
                             const Use& use, const Emit& emit) {
  constexpr int kEach = 16;  // of a lane: it costs as much to merge some of them
  using Begun = decltype(begin(Octet{}));
  struct Starts {
    int first;
    Begun begun;
  };
  collect_rows<Collect, Batch>(
      tile.channels, tile.p1, lanes_for(tile.p1, kEach), scratch,
      [&](int row) {
        const Octet at{tile.n0, tile.c0 + row, 0, 1, kOctet};
        return Starts{row * tile.p1, begin(at)};
      },
      [&](const Starts& starts, int i) { return load(starts.first + i); },
      [&](Collect& collect, const Starts& starts, int, int, const auto& raw) {
        use(collect, starts.begun, raw);
      },
      [&](int row, const auto& sums) { emit(tile.c0 + row, sums); });
}

// Where eight numbers lie in such shared memory, in elements.
SE_DEVICE int staged_at(const Tile& tile, const Octet& at) {
  return (at.c - tile.c0) * tile.p1 + at.p;
}
template <class X>
SE_DEVICE void stage_eight(unsigned char* stage, int at, const Eight<X, true>& raw) {
  SE_UNROLL
  for (int i = 0; i < kOctet / Number<X>::kVector; ++i)
    reinterpret_cast<Vector16*>(stage + std::size_t(at) * sizeof(X))[i] = raw.words[i];
}

// This block's tile, and its shared memory.
template <class X>
struct NormBlock {
  Tile tile;
  int block, split;
  int* word;
  Sum<X>* scratch;
  unsigned char* work;
  SE_DEVICE explicit NormBlock(const NormParameters& p) {
    const int at = p.reversed ? block_count() - 1 - block_index() : block_index(),
              tiles = p.cut.blocks * p.cut.splits;
    block = at % tiles % p.cut.blocks, split = at % tiles / p.cut.blocks;
    tile = tile_of(at / tiles, block, split, p.sizes, p.cut);
    unsigned char* memory = shared_memory();
    word = reinterpret_cast<int*>(memory);
    scratch = reinterpret_cast<Sum<X>*>(memory + p.shared.scratch);
    work = memory + p.shared.work;
  }
};

// sweep(emit) finds the sums S of the tile's rows; store((n, c) as a number, sums) takes those of
// all pixels, from the last split to come.
template <class S, class X, class Sweep, class Store>
SE_DEVICE void find_sums(const NormParameters& p, const NormBlock<X>& here, const Sweep& sweep,
                         const Store& store) {
  const Tile& tile = here.tile;
  const int splits = p.cut.splits, channels = p.sizes.channels;
  Sum<X>* parts = static_cast<Sum<X>*>(p.parts);
  // where they go is worked out when they go: not before, in registers beside the sums
  const auto finish = [&](int c, const S& sums) {
    store(std::int64_t(anew(tile.n0)) * channels + c, sums);
  };
  const auto at = [&](int n, int c, int part) {
    return (std::int64_t(n) * splits + part) * channels + c;
  };
  sweep([&](int c, const S& sums) {
    if (splits == 1)
      finish(c, sums);
    else
      sums.put(parts, std::int64_t(anew(p.sizes.images)) * splits * channels,
               at(anew(tile.n0), c, here.split));
  });
  if (splits == 1) return;
  std::uint32_t* counter = p.counters + std::int64_t(tile.n0) * p.cut.blocks + here.block;
  if (!completes(counter, splits, here.word)) return;
  const std::int64_t plane = std::int64_t(p.sizes.images) * splits * channels;
  for (int row = thread_index(); row < tile.channels; row += thread_count()) {
    const int c = tile.c0 + row;
    S total;
    for (int part = 0; part < splits; ++part) {
      S other;
      SE_UNROLL
      for (int k = 0; k < S::kNumbers; ++k)
        other.v[k] = load_shared_result(parts + k * plane + at(tile.n0, c, part));
      total.merge(other);
    }
    finish(c, total);
  }
}

// run(wide, flat) as the access asks.
template <class X, Layout layout, class Run>
SE_DEVICE void with_octets(Access access, const Run& run) {
  if constexpr (!std::is_same_v<X, Any>) {
    if (access == Access::vectors) return run(Flag<true>{}, Flag<false>{});
    if constexpr (layout == Layout::nchw)
      if (access == Access::flat) return run(Flag<true>{}, Flag<true>{});
  }
  run(Flag<false>{}, Flag<false>{});
}

template <Layout layout, bool flat>
constexpr Channels kChannels = layout == Layout::nhwc ? Channels::each
                               : flat                 ? Channels::two
                                                      : Channels::one;

}  // namespace se_kernels::cuda
