// squeeze: equation 2, x (N,C,P) to z (N,C), and its backward, dx = g s + dz / P.
#pragma once

#include "reduce.cuh"
#include "tile.cuh"

namespace se_kernels::cuda {

// v = pre(x) of channel c: what the block takes for its input.
struct Identity {
  template <class A>
  SE_DEVICE A operator()(A x, int) const {
    return x;
  }
};

template <class A>
SE_DEVICE A squeezed(Squeeze kind, const Sums<A>& sums, int pixels) {
  if (kind == Squeeze::max) return sums.peak;
  const A mean = sums.total / A(pixels);
  return kind == Squeeze::avg ? mean : A(0.5) * (mean + sums.peak);
}

// Σ v of rows of `pixels` in shared memory, one after the other; row r is of channel c0 + r %
// channels.
template <class X, class Prologue>
SE_DEVICE void squeeze_staged_rows(const unsigned char* x, int rows, int pixels, int c0,
                                   int channels, const Prologue& pre, const Found<Sum<X>>& found,
                                   Sum<X>* scratch) {
  using A = Sum<X>;
  const auto run = [&](auto width) {
    constexpr int W = decltype(width)::value;
    reduce_rows<W, 2>(
        rows, pixels, found, scratch, [&](int row) { return row * pixels; },
        [&](int start, int i) { return load_staged<X, W>(x, start + i * W); },
        [&](int, int row, int, const Raw<X, W>& raw, A(&term)[W], A(&v)[W]) {
          unpack<X, W>(raw, v);
          SE_UNROLL
          for (int j = 0; j < W; ++j) term[j] = v[j] = pre(v[j], c0 + row % channels);
        });
  };
  constexpr int V = Number<X>::kVector;
  if constexpr (V > 1)
    if (pixels % V == 0) return run(Width<V>{});
  run(Width<1>{});
}

// The same of `pixels` pixels of all `channels` channels (nhwc); the sums go to found from `at` on.
template <class X, class Prologue>
SE_DEVICE void squeeze_staged_columns(const unsigned char* x, int channels, int pixels, int at,
                                      const Prologue& pre, const Found<Sum<X>>& found,
                                      Sum<X>* scratch) {
  using A = Sum<X>;
  constexpr int V = Number<X>::kVector;
  reduce_columns<V, 2>(
      channels, 0, pixels, at, found, scratch, [&](int column) { return column * V; },
      [&](int start, int p) { return load_staged<X, V>(x, start + p * channels); },
      [&](int, int column, int, const Raw<X, V>& raw, A(&term)[V], A(&v)[V]) {
        unpack<X, V>(raw, v);
        SE_UNROLL
        for (int j = 0; j < V; ++j) term[j] = v[j] = pre(v[j], column * V + j);
      });
}

// Copies the tile's run of each image into shared memory, one after the other (nchw, all pixels).
template <class X, Reuse reuse>
SE_DEVICE void stage_runs(const Images& x, const Tile& tile, unsigned char* stage) {
  constexpr int V = Number<X>::kVector;
  const int run = tile.channels * tile.p1;
  walk_runs<V, 4>(
      tile, [&](int n, int c) { return start_of<X, Layout::nchw>(x, n, c); },
      [&](const unsigned char* start, int i) {
        return load_raw<X, V, reuse>(start + std::size_t(i) * sizeof(X), x.type);
      },
      [&](const unsigned char*, int k, int i, const Raw<X, V>& raw) {
        *reinterpret_cast<Vector16*>(stage + std::size_t(k * run + i) * sizeof(X)) = raw.v;
      });
}

// Σ v of a tile's rows, and for a maximum the largest v.
template <class X, Layout layout, class Prologue>
SE_DEVICE void squeeze_tile(const Images& x, const Tile& tile, Access access, const Prologue& pre,
                            const Found<Sum<X>>& found, Sum<X>* scratch, unsigned char* stage) {
  using A = Sum<X>;
  const auto in_place = [&](auto width) {
    constexpr int W = decltype(width)::value;
    if constexpr (layout == Layout::nchw) {
      reduce_rows<W, 4>(
          tile.rows(), tile.p1 - tile.p0, found, scratch,
          [&](int row) {
            unsigned char* start = start_of<X, layout>(x, tile.image_of(row), tile.channel_of(row));
            return pixel_of<X, layout>(x, start, tile.p0);
          },
          [&](unsigned char* start, int i) {
            return load_raw<X, W, Reuse::keep>(pixel_of<X, layout>(x, start, i * W), x.type);
          },
          [&](unsigned char*, int row, int, const Raw<X, W>& raw, A(&term)[W], A(&v)[W]) {
            unpack<X, W>(raw, v);
            SE_UNROLL
            for (int j = 0; j < W; ++j) term[j] = v[j] = pre(v[j], tile.channel_of(row));
          });
    } else {
      for (int k = 0; k < tile.images; ++k)
        reduce_columns<W, 4>(
            tile.channels, tile.p0, tile.p1, k * tile.channels, found, scratch,
            [&](int column) { return start_of<X, layout>(x, tile.n0 + k, tile.c0 + column * W); },
            [&](unsigned char* start, int p) {
              return load_raw<X, W, Reuse::keep>(pixel_of<X, layout>(x, start, p), x.type);
            },
            [&](unsigned char*, int column, int, const Raw<X, W>& raw, A(&term)[W], A(&v)[W]) {
              unpack<X, W>(raw, v);
              SE_UNROLL
              for (int j = 0; j < W; ++j) term[j] = v[j] = pre(v[j], tile.c0 + column * W + j);
            });
    }
  };
  constexpr int V = Number<X>::kVector;
  if constexpr (V > 1) {
    if (access == Access::vectors) return in_place(Width<V>{});
    if constexpr (layout == Layout::nchw)
      if (access == Access::flat) {
        stage_runs<X, Reuse::keep>(x, tile, stage);
        block_barrier();
        return squeeze_staged_rows<X>(stage, tile.rows(), tile.p1, tile.c0, tile.channels, pre,
                                      found, scratch);
      }
  }
  in_place(Width<1>{});
}

// ---- backward

// g = dy post'(y): nothing where the ReLU closed.
template <class A>
SE_DEVICE A post_backward(A dy, A y) {
  return y <= A(0) ? A(0) : dy;
}

// What dz adds to dx: mean to each pixel, share to each that is the peak. In place over dz and
// ties.
template <class A>
SE_DEVICE void spread_gradient(Squeeze kind, int pixels, A& dz_to_mean, A peak, A& ties_to_share) {
  const A whole = kind == Squeeze::avgmax ? A(0.5) * dz_to_mean : dz_to_mean;
  dz_to_mean = kind == Squeeze::max ? A(0) : whole / A(pixels);
  if (kind != Squeeze::avg)
    ties_to_share = whole / (peak == peak ? ties_to_share : A(0));  // nothing equals a NaN
}

// Per row of a tile, in shared memory: dx = g s + mean + share where x is the peak.
template <class A>
struct Spread {
  const A *s, *mean, *peak, *share;
  bool peaks;
  template <Layout layout, int V>
  SE_DEVICE void dx(const int (&rows)[V], const A (&x)[V], A (&g)[V]) const {
    A n[V];
    read_rows<layout>(s, rows, n);
    SE_UNROLL
    for (int j = 0; j < V; ++j) g[j] *= n[j];
    read_rows<layout>(mean, rows, n);
    SE_UNROLL
    for (int j = 0; j < V; ++j) g[j] += n[j];
    if (!peaks) return;
    SE_UNROLL
    for (int j = 0; j < V; ++j)  // an infinite share: NaN elsewhere
      g[j] += (x[j] == peak[rows[j]] ? A(1) : A(0)) * share[rows[j]];
  }
};

// dx of a tile. g where given, masked by y where given; x only for its maxima.
template <class X, Layout layout>
SE_DEVICE void squeeze_backward_tile(const Images& g, const Images& y, const Images& x,
                                     const Images& dx, const Tile& tile, Access access,
                                     const Divisor& by_pixels, const Spread<Sum<X>>& spread) {
  using A = Sum<X>;
  struct Starts {
    unsigned char *g, *y, *x, *dx;
  };
  const auto start = [&](int n, int c) {
    return Starts{start_of<X, layout>(g, n, c), start_of<X, layout>(y, n, c),
                  start_of<X, layout>(x, n, c), start_of<X, layout>(dx, n, c)};
  };
  with_access<X, layout>(access, [&](auto width, auto flat) {
    constexpr int W = decltype(width)::value;
    struct Three {
      Raw<X, W> g, y, x;
    };
    const auto load = [&](const Starts& at, int p) {
      Three raw{};
      if (g.data) raw.g = load_raw<X, W, Reuse::drop>(pixel_of<X, layout>(g, at.g, p), g.type);
      if (y.data) raw.y = load_raw<X, W, Reuse::drop>(pixel_of<X, layout>(y, at.y, p), y.type);
      if (spread.peaks)
        raw.x = load_raw<X, W, Reuse::drop>(pixel_of<X, layout>(x, at.x, p), x.type);
      return raw;
    };
    const auto finish = [&](const Starts& at, const int (&rows)[W], int p, const Three& raw) {
      A g_v[W], y_v[W], x_v[W];
      unpack<X, W>(raw.g, g_v), unpack<X, W>(raw.y, y_v), unpack<X, W>(raw.x, x_v);
      SE_UNROLL
      for (int j = 0; j < W; ++j)
        if (y.data) g_v[j] = post_backward(g_v[j], y_v[j]);
      spread.template dx<layout, W>(rows, x_v, g_v);
      store_values<X, W, Reuse::drop>(pixel_of<X, layout>(dx, at.dx, p), dx.type, g_v);
    };
    walk_numbers<layout, W, 2, decltype(flat)::value>(tile, by_pixels, start, load, finish);
  });
}

}  // namespace se_kernels::cuda
