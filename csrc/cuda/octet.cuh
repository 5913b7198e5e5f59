// Eight numbers of a row (nchw) or of a pixel (nhwc): what a thread loads, uses and stores at a
// time. They are a byte of the mask.
#pragma once

#include "number.cuh"
#include "plan.h"

namespace se_kernels::cuda {

constexpr int kOctet = 8;

// A block's part of one image: channels c0 to c0 + channels, pixels p0 to p1.
struct Tile {
  int n, c0, channels, p0, p1;
};

// How the images are read. wide: 16 bytes at a time, else number by number. flat: the channels of a
// tile are one run of memory, whose rows start anywhere (nchw); eight numbers are of two channels
// at most.
template <class X_, Layout layout_, bool wide_, bool flat_>
struct Mode {
  using X = X_;
  using A = Sum<X>;
  static constexpr Layout layout = layout_;
  static constexpr bool wide = wide_, flat = flat_;
};

// run(mode) as the access asks.
template <class X, Layout layout, class Run>
SE_DEVICE void with_mode(Access access, const Run& run) {
  if constexpr (!std::is_same_v<X, WideFallback>) {
    if (access == Access::vectors) return run(Mode<X, layout, true, false>{});
    if constexpr (layout == Layout::nchw)
      if (access == Access::flat) return run(Mode<X, layout, true, true>{});
  }
  run(Mode<X, layout, false, false>{});
}

// Where they begin: pixel p of channel c of image n. `here` are to be read; of a flat tile `left`
// are of channel c, the others of the next, and `run` is the first one's place in the image.
struct Octet {
  int n, c, p, here, left, run;
};

// Octets whose loads are under way at a time: so many bytes of each tensor.
template <class M, int bytes>
constexpr int kOctets = M::wide && bytes > kOctet* int(sizeof(typename M::X))
                            ? bytes / kOctet / int(sizeof(typename M::X))
                            : 1;

template <class M>
SE_DEVICE unsigned char* place_of(const Images& t, const Octet& at) {
  std::int64_t i = at.n * t.image;
  if constexpr (M::flat)
    i += at.run;
  else if constexpr (M::layout == Layout::nchw)
    i += at.c * t.row + at.p;
  else
    i += at.p * t.row + at.c;
  return t.data + i * bytes_of<typename M::X>(t);
}

// As they lie.
template <class M, bool wide = M::wide>
struct Eight {
  Vector16 words[kOctet * sizeof(typename M::X) / sizeof(Vector16)];
};
template <class M>
struct Eight<M, false> {
  typename M::A numbers[kOctet];
};

// Anything, unless `on`.
template <class M, Reuse reuse>
SE_DEVICE Eight<M> load_eight(const Images& t, const Octet& at, bool on) {
  const unsigned char* from = place_of<M>(t, at);
  Eight<M> out;
  if constexpr (M::wide) {
    SE_UNROLL
    for (int i = 0; i < int(sizeof(out) / sizeof(Vector16)); ++i)
      out.words[i] = reuse == Reuse::keep ? load_keep(from + i * sizeof(Vector16), on)
                                          : load_drop(from + i * sizeof(Vector16), on);
  } else {
    with_type<typename M::X>(t.type, [&](auto number) {
      const auto* numbers = reinterpret_cast<const decltype(number)*>(from);
      SE_UNROLL
      for (int j = 0; j < kOctet; ++j)
        out.numbers[j] = on && j < at.here ? typename M::A(widen(numbers[j])) : typename M::A(0);
    });
  }
  return out;
}

template <class M>
SE_DEVICE void unpack_eight(const Eight<M>& raw, typename M::A (&v)[kOctet]) {
  if constexpr (M::wide) {
    constexpr int V = Number<typename M::X>::kVector;
    SE_UNROLL
    for (int i = 0; i < kOctet / V; ++i) {
      float some[V];
      unpack<typename M::X>(raw.words[i], some);
      SE_UNROLL
      for (int j = 0; j < V; ++j) v[i * V + j] = some[j];
    }
  } else {
    SE_UNROLL
    for (int j = 0; j < kOctet; ++j) v[j] = raw.numbers[j];
  }
}

template <class M>
SE_DEVICE Eight<M> pack_eight(const typename M::A (&v)[kOctet]) {
  constexpr int V = Number<typename M::X>::kVector;
  Eight<M> out;
  SE_UNROLL
  for (int i = 0; i < kOctet / V; ++i) {
    float some[V];
    SE_UNROLL
    for (int j = 0; j < V; ++j) some[j] = v[i * V + j];
    out.words[i] = pack<typename M::X>(some);
  }
  return out;
}

template <class M, Reuse reuse>
SE_DEVICE void store_eight(const Images& t, const Octet& at, const typename M::A (&v)[kOctet]) {
  unsigned char* to = place_of<M>(t, at);
  if constexpr (M::wide) {
    const Eight<M> packed = pack_eight<M>(v);
    SE_UNROLL
    for (int i = 0; i < int(sizeof(packed) / sizeof(Vector16)); ++i) {
      if constexpr (reuse == Reuse::keep)
        store_keep(to + i * sizeof(Vector16), packed.words[i]);
      else
        store_stream(to + i * sizeof(Vector16), packed.words[i]);
    }
  } else {
    with_type<typename M::X>(t.type, [&](auto number) {
      auto* numbers = reinterpret_cast<decltype(number)*>(to);
      SE_UNROLL
      for (int j = 0; j < kOctet; ++j)
        if (j < at.here) narrow(v[j], numbers[j]);
    });
  }
}

// ---- numbers per channel

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
  unsigned first;  // a bit for each of the first channel
  SE_DEVICE A operator[](int j) const { return first >> j & 1u ? v : next; }
};

template <class M>
constexpr Channels kChannels = M::layout == Layout::nhwc ? Channels::each
                               : M::flat                 ? Channels::two
                                                         : Channels::one;

// K numbers for each channel of a tile, in shared memory: K rows of `stride`.
template <class A>
struct Table {
  A* data;
  int stride;
};

template <class A, Channels channels, int K>
struct Constants {
  PerChannel<A, channels> k[K];
};
template <class A, Channels channels>
struct Constants<A, channels, 0> {
  int k = 0;
};

template <class M, Channels channels, int K>
SE_DEVICE Constants<typename M::A, channels, K> constants_of(const Table<typename M::A>& table,
                                                             const Tile& tile, const Octet& at) {
  using A = typename M::A;
  Constants<A, channels, K> out;
  SE_UNROLL
  for (int k = 0; k < K; ++k) {
    const A* from = table.data + k * table.stride + (at.c - tile.c0);
    if constexpr (K == 0) {
    } else if constexpr (channels == Channels::one) {
      out.k[k] = {*from};
    } else if constexpr (channels == Channels::two) {
      out.k[k] = {from[0], from[1], (1u << at.left) - 1};
    } else if constexpr (M::wide) {
      SE_UNROLL
      for (int i = 0; i < kOctet / 4; ++i) {
        const Vector16 some = reinterpret_cast<const Vector16*>(from)[i];
        SE_UNROLL
        for (int j = 0; j < 4; ++j) out.k[k].v[4 * i + j] = word_to_float(some.words[j]);
      }
    } else {
      SE_UNROLL
      for (int j = 0; j < kOctet; ++j) out.k[k].v[j] = from[j];
    }
  }
  return out;
}

// fill(c, numbers) gives the K numbers of channel c.
template <int K, class A, class Fill>
SE_DEVICE void fill_table(const Table<A>& table, const Tile& tile, const Fill& fill) {
  SE_ROLLED
  for (int i = thread_index(); i < tile.channels; i += thread_count()) {
    A numbers[K];
    fill(tile.c0 + i, numbers);
    SE_UNROLL
    for (int k = 0; k < K; ++k) table.data[k * table.stride + i] = numbers[k];
  }
  block_barrier();
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

// A bit for each of eight numbers; all where there is no mask, anything unless `on`.
template <class M>
SE_DEVICE unsigned load_mask(const std::uint8_t* mask, const Octet& at, const Sizes& sizes,
                             bool on) {
  if (!mask || !on) return 0xffu;
  const std::uint8_t* from = mask + mask_place<M::layout>(at, sizes);
  if constexpr (!M::flat) return *from;
  const int row_bytes = mask_row_bytes(M::layout, sizes), byte = at.p / kOctet;
  unsigned bits = from[0];
  if (byte + 1 < row_bytes) bits |= unsigned(from[1]) << kOctet;
  bits >>= at.p % kOctet;
  if (at.left < kOctet) bits |= unsigned(from[row_bytes - byte]) << at.left;  // past a row: 0
  return bits;
}

// From a bit for each number of a flat tile's run, in shared memory, the bytes of its rows.
SE_DEVICE void store_flat_mask(std::uint8_t* mask, const Tile& tile, const Sizes& sizes,
                               const unsigned char* bits) {
  const int bytes = mask_row_bytes(Layout::nchw, sizes),
            log = smaller(log_of((bytes + 7) / 8), log_of(kWarp));
  const Lanes lanes{log};
  SE_ROLLED
  for (int row = lanes.group(); row < tile.channels; row += lanes.groups()) {
    std::uint8_t* to = mask + (std::int64_t(tile.n) * sizes.channels + tile.c0 + row) * bytes;
    SE_ROLLED
    for (int byte = lanes.lane(); byte < bytes; byte += lanes.count()) {
      const int first = row * sizes.pixels + byte * kOctet, left = sizes.pixels - byte * kOctet;
      const unsigned char* from = bits + first / kOctet;
      unsigned found = from[0];
      if (first % kOctet + smaller(left, kOctet) > kOctet) found |= unsigned(from[1]) << kOctet;
      found >>= first % kOctet;
      to[byte] = std::uint8_t(left < kOctet ? found & ((1u << left) - 1) : found);
    }
  }
}

template <class A>
SE_DEVICE void apply_mask(unsigned bits, A (&g)[kOctet]) {
  SE_UNROLL
  for (int j = 0; j < kOctet; ++j) g[j] = bits >> j & 1u ? g[j] : A(0);
}

}  // namespace se_kernels::cuda
