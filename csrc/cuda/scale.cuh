// scale: equation 4 and the tail of Fig. 3, y = post(s v + residual), and its backward,
// g = dy post'(y), dr = g, ds = Σ g v.
#pragma once

#include "squeeze.cuh"

namespace se_kernels::cuda {

// y = v; or y = v + residual, where there is one (-0 stays -0 without), with a ReLU where asked
// for.
struct Plain {
  static constexpr bool kTail = false;
  template <class A>
  SE_DEVICE A operator()(A v, A) const {
    return v;
  }
};
struct Tail {
  static constexpr bool kTail = true;
  bool adds, relu;
  template <class A>
  SE_DEVICE A operator()(A v, A residual) const {
    if (adds) v += residual;
    return relu && v <= A(0) ? A(0) : v;  // NaN stays
  }
};

// y of a tile, s of its rows in shared memory.
template <class X, Layout layout, class Prologue, class Epilogue>
SE_DEVICE void scale_tile(const Images& x, const Images& residual, const Images& y,
                          const Tile& tile, Access access, const Divisor& by_pixels,
                          const Prologue& pre, const Epilogue& post, const Sum<X>* s) {
  using A = Sum<X>;
  struct Starts {
    unsigned char *x, *residual, *y;
  };
  const auto start = [&](int n, int c) {
    return Starts{start_of<X, layout>(x, n, c), start_of<X, layout>(residual, n, c),
                  start_of<X, layout>(y, n, c)};
  };
  with_access<X, layout>(access, [&](auto width, auto flat) {
    constexpr int W = decltype(width)::value;
    struct Two {
      Raw<X, W> x, residual;
    };
    const auto load = [&](const Starts& at, int p) {
      Two raw{};
      raw.x = load_raw<X, W, Reuse::drop>(pixel_of<X, layout>(x, at.x, p), x.type);
      if (Epilogue::kTail && residual.data)
        raw.residual = load_raw<X, W, Reuse::drop>(pixel_of<X, layout>(residual, at.residual, p),
                                                   residual.type);
      return raw;
    };
    const auto finish = [&](const Starts& at, const int (&rows)[W], int p, const Two& raw) {
      A v[W], r[W], gates[W];
      unpack<X, W>(raw.x, v), unpack<X, W>(raw.residual, r);
      read_rows<layout>(s, rows, gates);
      SE_UNROLL
      for (int j = 0; j < W; ++j) v[j] = post(pre(v[j], tile.channel_of(rows[j])) * gates[j], r[j]);
      store_values<X, W, Reuse::drop>(pixel_of<X, layout>(y, at.y, p), y.type, v);
    };
    walk_numbers<layout, W, 4, decltype(flat)::value>(tile, by_pixels, start, load, finish);
  });
}

// What the first sweep of backward reads and writes: y only for the mask; dr = g and dx = g s where
// wanted; x for ds and for its maxima.
template <class A>
struct Gradients {
  Images dy, y, x, dr, dx;
  const A* s;  // of the tile's rows, for dx
};
struct GradientsStarts {
  unsigned char *dy, *y, *x, *dr, *dx;
};
template <class X, int W>
struct GradientsRaw {
  Raw<X, W> dy, y, x;
};

template <class X, Layout layout>
SE_DEVICE GradientsStarts start_of(const Gradients<Sum<X>>& t, int n, int c) {
  return {start_of<X, layout>(t.dy, n, c), start_of<X, layout>(t.y, n, c),
          start_of<X, layout>(t.x, n, c), start_of<X, layout>(t.dr, n, c),
          start_of<X, layout>(t.dx, n, c)};
}

template <class X, Layout layout, bool tail, int W>
SE_DEVICE GradientsRaw<X, W> load_gradients(const Gradients<Sum<X>>& t, bool peaks,
                                            const GradientsStarts& at, int p) {
  const auto load = [&](const Images& image, unsigned char* start, bool again) {
    const unsigned char* from = pixel_of<X, layout>(image, start, p);
    return again ? load_raw<X, W, Reuse::keep>(from, image.type)
                 : load_raw<X, W, Reuse::drop>(from, image.type);
  };
  // dy and y come again, unless dr takes their place or this is the only sweep; x for its maxima
  const bool again = !(tail && t.dr.data) && !t.dx.data;
  GradientsRaw<X, W> raw{};
  if (t.dy.data) raw.dy = load(t.dy, at.dy, again);
  if (tail && t.y.data) raw.y = load(t.y, at.y, again);
  if (t.x.data) raw.x = load(t.x, at.x, peaks);
  return raw;
}

// g and v from what was loaded; dr and dx written. The numbers are of these rows of the tile.
template <class X, Layout layout, class Prologue, bool tail, int W>
SE_DEVICE void use_gradients(const Gradients<Sum<X>>& t, const Tile& tile, const Prologue& pre,
                             const GradientsRaw<X, W>& raw, const int (&rows)[W],
                             const GradientsStarts& at, int p, Sum<X> (&g)[W], Sum<X> (&v)[W]) {
  Sum<X> y[W];
  unpack<X, W>(raw.dy, g), unpack<X, W>(raw.y, y), unpack<X, W>(raw.x, v);
  SE_UNROLL
  for (int j = 0; j < W; ++j) {
    if (tail && t.y.data) g[j] = post_backward(g[j], y[j]);
    v[j] = pre(v[j], tile.channel_of(rows[j]));
  }
  if (tail && t.dr.data)
    store_values<X, W, Reuse::keep>(pixel_of<X, layout>(t.dr, at.dr, p), t.dr.type, g);
  if (t.dx.data) {
    Sum<X> dx[W];
    read_rows<layout>(t.s, rows, dx);
    SE_UNROLL
    for (int j = 0; j < W; ++j) dx[j] *= g[j];
    store_values<X, W, Reuse::drop>(pixel_of<X, layout>(t.dx, at.dx, p), t.dx.type, dx);
  }
}

// ds = Σ g v of a tile's rows, and for a maximum the largest v and its ties.
template <class X, Layout layout, class Prologue, bool tail>
SE_DEVICE void scale_backward_tile(const Gradients<Sum<X>>& t, const Tile& tile, Access access,
                                   const Divisor& by_pixels, const Prologue& pre,
                                   const Found<Sum<X>>& found, Sum<X>* scratch,
                                   unsigned char* stage) {
  using A = Sum<X>;
  constexpr int V = Number<X>::kVector;
  const auto in_place = [&](auto width) {
    constexpr int W = decltype(width)::value;
    using Loaded = GradientsRaw<X, W>;
    const auto load = [&](const GradientsStarts& at, int p) {
      return load_gradients<X, layout, tail, W>(t, found.tracks, at, p);
    };
    const auto terms = [&](const GradientsStarts& at, int row, int p, const Loaded& raw,
                           A(&term)[W], A(&v)[W]) {
      int rows[W];
      rows_from<layout, W>(row, rows);
      use_gradients<X, layout, Prologue, tail, W>(t, tile, pre, raw, rows, at, p, term, v);
      SE_UNROLL
      for (int j = 0; j < W; ++j) term[j] *= v[j];
    };
    if constexpr (layout == Layout::nchw) {
      reduce_rows<W, 2>(
          tile.rows(), tile.p1 - tile.p0, found, scratch,
          [&](int row) { return start_of<X, layout>(t, tile.image_of(row), tile.channel_of(row)); },
          [&](const GradientsStarts& at, int i) { return load(at, tile.p0 + i * W); },
          [&](const GradientsStarts& at, int row, int i, const Loaded& raw, A(&term)[W], A(&v)[W]) {
            terms(at, row, tile.p0 + i * W, raw, term, v);
          });
    } else {
      for (int k = 0; k < tile.images; ++k)
        reduce_columns<W, 2>(
            tile.channels, tile.p0, tile.p1, k * tile.channels, found, scratch,
            [&](int column) { return start_of<X, layout>(t, tile.n0 + k, tile.c0 + column * W); },
            load,
            [&](const GradientsStarts& at, int column, int p, const Loaded& raw, A(&term)[W],
                A(&v)[W]) { terms(at, k * tile.channels + column * W, p, raw, term, v); });
    }
  };

  if constexpr (V > 1) {
    if (access == Access::vectors) return in_place(Width<V>{});
    if constexpr (layout == Layout::nchw)
      if (access == Access::flat) {
        // g, then v behind it, through shared memory: a row starts anywhere
        const int run = tile.channels * tile.p1, all = tile.images * run;
        unsigned char* stage_v = stage + std::size_t(all) * sizeof(X);
        walk_runs<V, 2>(
            tile, [&](int n, int c) { return start_of<X, layout>(t, n, c); },
            [&](const GradientsStarts& at, int i) {
              return load_gradients<X, layout, tail, V>(t, found.tracks, at, i);
            },
            [&](const GradientsStarts& at, int k, int i, const GradientsRaw<X, V>& raw) {
              int rows[V];
              A g[V], v[V];
              rows_of_run<V>(i, by_pixels, k * tile.channels, rows);
              use_gradients<X, layout, Prologue, tail, V>(t, tile, pre, raw, rows, at, i, g, v);
              const std::size_t staged = std::size_t(k * run + i) * sizeof(X);
              *reinterpret_cast<Vector16*>(stage + staged) = pack<X, V>(g);
              *reinterpret_cast<Vector16*>(stage_v + staged) = raw.x.v;
            });
        block_barrier();
        struct Both {
          Raw<X, 1> g, v;
        };
        return reduce_rows<1, 4>(
            tile.rows(), tile.p1, found, scratch, [&](int row) { return row * tile.p1; },
            [&](int start, int i) {
              return Both{load_staged<X, 1>(stage, start + i),
                          load_staged<X, 1>(stage_v, start + i)};
            },
            [&](int, int row, int, const Both& raw, A(&term)[1], A(&v)[1]) {
              v[0] = pre(raw.v.v, tile.channel_of(row));
              term[0] = raw.g.v * v[0];
            });
      }
  }
  in_place(Width<1>{});
}

}  // namespace se_kernels::cuda
