// The backward kernels: scale, excite, squeeze, backwards, in one launch. Compiled once for each
// SE_NUMBER.
#include "backward.cuh"
#include "cluster.cuh"
#include "runtime.cuh"
#include "scale.cuh"

namespace se_kernels::cuda {
namespace {

template <class X, Layout layout, class Prologue, bool tail>
SE_KERNEL(kThreads, 2)
backward_two_sweeps(SE_PARAMETER BackwardTwoSweeps parameters) {
  using A = Sum<X>;
  const BackwardParameters& p = parameters.block;
  const Cut& cut = parameters.cut;
  const Sizes& sizes = p.sizes;
  const Passing& passing = parameters.passing;
  const Room<A> room(parameters.shared, cut);
  const bool peaks = p.variant.squeeze != Squeeze::avg;
  const A *a = static_cast<const A*>(p.a), *s = static_cast<const A*>(p.s);
  A *peak = static_cast<A*>(p.peak), *ties = static_cast<A*>(p.ties);

  const Item item = item_of(cut.first_item + take_ticket(passing.tickets(), room.word), cut);
  const int group = item.group, block = item.index % cut.blocks, split = item.index / cut.blocks;
  const Tile tile = tile_of(group, block, split, sizes, cut);
  const auto each_row = [&](const auto& use) {
    for (int row = thread_index(); row < tile.rows(); row += thread_count())
      use(row, entry(tile, row, sizes.channels));
  };

  if (item.kind == Kind::first_sweep) {
    // g = dy post'(y), dr = g, ds = Σ g v
    const Found<A> found{room.found, room.plane, peaks};
    A* gates = room.found + 3 * room.plane;
    Gradients<A> t{p.dy, p.y, p.x, p.dr, p.excites ? Images{} : p.dx, gates};
    if (t.dx.data) {
      each_row([&](int row, std::int64_t at) { gates[row] = s[at]; });
      block_barrier();
    }
    scale_backward_tile<X, layout, Prologue, tail>(t, tile, parameters.access, sizes.by_pixels,
                                                   Prologue{}, found, room.scratch, room.work);
    if (!gather(passing, found, tile, group, block, split, sizes, cut, room.word)) return;
    A *ds = static_cast<A*>(p.ds), *de = static_cast<A*>(p.de);
    each_row([&](int row, std::int64_t at) {
      const Sums<A> sums = found.get(row);
      if (peaks) peak[at] = sums.peak, ties[at] = sums.ties;
      if (ds) ds[at] = sums.total;
      if (p.excites) de[at] = room.found[row] = close_gate(sums.total, s[at], p.variant.gate);
    });
    if (!p.excites) return;
    // this tile's part of W2ᵀ de
    block_barrier();
    A* partials = partials_of<A>(passing, group, block, sizes, cut);
    contract_outer<A>(p.w2, std::int64_t(tile.c0) * sizes.reduced, sizes.reduced, sizes.reduced,
                      tile.channels, room.found, tile.channels, tile.images, room.scratch,
                      [&](int k, int r, A v) { partials[k * sizes.reduced + r] = v; });
    publish(passing.squeezed(group));
  } else if (item.kind == Kind::excite) {
    // da = δ'(a) W2ᵀ de
    wait_for(passing.squeezed(group), cut.blocks);
    A *da = static_cast<A*>(p.da), *h = static_cast<A*>(p.h);
    sum_partials<A>(passing, group, item.index, sizes, cut, room.scratch,
                    [&](int, std::int64_t at, A dh) {
                      da[at] = activate_backward(dh, a[at], p.variant);
                      h[at] = activate(a[at], p.variant);
                    });
    publish(passing.excited(group, cut));
  } else {
    // dz = W1ᵀ da of this tile's channels
    A *mean = room.found, *tops = mean + room.plane, *share = tops + room.plane,
      *gates = share + room.plane;
    if (p.excites) {
      wait_for(passing.excited(group, cut), cut.excites);
      each_row([&](int row, std::int64_t) { mean[row] = 0; });
      for_hidden<A>(passing, tile, sizes, cut, reinterpret_cast<A*>(room.work),
                    [&](const A* da, int r0, int size) {
                      contract_outer<A>(
                          p.w1, std::int64_t(r0) * sizes.channels + tile.c0, tile.channels,
                          sizes.channels, size, da, cut.chunk, tile.images, room.scratch,
                          [&](int k, int c, A v) { mean[k * tile.channels + c] += v; });
                    });
    }
    each_row([&](int row, std::int64_t at) {
      A dz = p.excites ? mean[row] : static_cast<const A*>(p.dz)[at], top = 0, times = 1;
      if (peaks) top = load_shared_result(peak + at), times = load_shared_result(ties + at);
      spread_gradient(p.variant.squeeze, sizes.pixels, dz, top, times);
      mean[row] = dz, tops[row] = top, share[row] = times;
      gates[row] = s ? s[at] : A(0);
    });
    block_barrier();
    // dx = g s + dz / P; dr is g
    const bool stored = tail && p.dr.data;
    squeeze_backward_tile<X, layout>(stored ? p.dr : p.dy, stored ? Images{} : p.y, p.x, p.dx, tile,
                                     parameters.access, sizes.by_pixels,
                                     Spread<A>{gates, mean, tops, share, peaks});
  }
}

template <class X, Layout layout, class Prologue, bool tail>
SE_KERNEL(kThreads, 1)
backward_cluster(SE_PARAMETER BackwardCluster parameters) {
#if SE_HAS_CLUSTERS
  using A = Sum<X>;
  constexpr int V = Number<X>::kVector;
  const BackwardParameters& p = parameters.block;
  const Sizes& sizes = p.sizes;
  const Slices& slices = parameters.slices;
  const Block<X, layout> block(sizes, slices, parameters.shared);
  const int C = sizes.channels, R = sizes.reduced;
  const Found<A> found{block.found, block.plane, false};
  const A *a = static_cast<const A*>(p.a), *s = static_cast<const A*>(p.s);
  A *de = static_cast<A*>(p.de), *da = static_cast<A*>(p.da), *h = static_cast<A*>(p.h);
  const Prologue pre{};
  const bool masks = tail && p.y.data, stores = tail && p.dr.data;

  struct Starts {
    unsigned char *y, *x, *dr, *dx;
  };
  const auto start = [&](int n) {
    return Starts{block.run_of(p.y, n), block.run_of(p.x, n), block.run_of(p.dr, n),
                  block.run_of(p.dx, n)};
  };
  // g of slot k from its i-th number on: masked in place, dr written
  const auto mask = [&](const Starts& at, int k, int i, A(&g)[V]) {
    const std::size_t offset = std::size_t(i) * sizeof(X);
    unpack<X, V>(load_staged<X, V>(block.slot(k), i), g);
    if (masks) {
      A y[V];
      unpack<X, V>(load_raw<X, V, Reuse::drop>(at.y + offset, p.y.type), y);
      SE_UNROLL
      for (int j = 0; j < V; ++j) g[j] = post_backward(g[j], y[j]);
      *reinterpret_cast<Vector16*>(block.slot(k) + offset) = pack<X, V>(g);
    }
    if (stores) store_values<X, V, Reuse::drop>(at.dr + offset, p.dr.type, g);
  };

  block.start();
  block.fetch_all(p.dy, block.cluster);
  int round = 0, staged = 0;
  for (int turn = block.cluster; turn < block.turns(); turn += slices.clusters, ++round) {
    const int n0 = turn * slices.images, here = block.images_of(turn);
    const auto each_own = [&](const auto& use) {
      for (int i = thread_index(); i < here * block.channels; i += thread_count()) {
        const int k = i / block.channels, c = i % block.channels;
        use(block.own_at(k, c), k, c, std::int64_t(n0 + k) * C + block.c0 + c);
      }
    };

    // ds = Σ g v
    for (int k = 0; k < here; ++k) {
      const Starts starts = start(n0 + k);
      if (slices.staged) block.fetch_x(p.x, n0 + k);
      block.wait_slot(k, round);
      if (slices.staged) {
        for (int i = thread_index() * V; i < block.count; i += thread_count() * V) {
          A g[V];
          mask(starts, k, i, g);
        }
        block.wait_x(staged++);
        block_barrier();
        struct Both {
          Raw<X, 1> g, v;
        };
        reduce_rows<1, 2>(
            block.channels, sizes.pixels, {found.data + block.own_at(k, 0), found.size, false},
            block.scratch, [&](int row) { return row * sizes.pixels; },
            [&](int first, int i) {
              return Both{load_staged<X, 1>(block.slot(k), first + i),
                          load_staged<X, 1>(block.x, first + i)};
            },
            [&](int, int row, int, const Both& raw, A(&term)[1], A(&v)[1]) {
              v[0] = pre(raw.v.v, block.c0 + row);
              term[0] = raw.g.v * v[0];
            });
        continue;
      }
      const auto load = [&](int i) {
        return load_raw<X, V, Reuse::drop>(starts.x + std::size_t(i) * sizeof(X), p.x.type);
      };
      const auto terms = [&](int c, int i, const Raw<X, V>& raw, A(&term)[V], A(&v)[V]) {
        mask(starts, k, i, term);
        unpack<X, V>(raw, v);
        SE_UNROLL
        for (int j = 0; j < V; ++j) term[j] *= v[j] = pre(v[j], layout == Layout::nchw ? c : c + j);
      };
      if constexpr (layout == Layout::nchw)
        reduce_rows<V, 4>(
            block.channels, sizes.pixels, {found.data + block.own_at(k, 0), found.size, false},
            block.scratch, [&](int row) { return row * sizes.pixels; },
            [&](int first, int i) { return load(first + i * V); },
            [&](int first, int row, int i, const Raw<X, V>& raw, A(&term)[V], A(&v)[V]) {
              terms(block.c0 + row, first + i * V, raw, term, v);
            });
      else
        reduce_columns<V, 4>(
            C, 0, block.count / C, k * C, found, block.scratch,
            [&](int column) { return column * V; },
            [&](int first, int pixel) { return load(first + pixel * C); },
            [&](int first, int column, int pixel, const Raw<X, V>& raw, A(&term)[V], A(&v)[V]) {
              terms(column * V, first + pixel * C, raw, term, v);
            });
    }
    if (round > 0) block.wait();  // what the turn before left is read
    if (layout == Layout::nhwc) block.arrive(), block.wait();
    each_own([&](int row, int k, int c, std::int64_t at) {
      Sums<A> sums;
      if constexpr (layout == Layout::nchw)
        sums = found.get(row);
      else
        sums = block.gather(k, c, false);
      de[at] = block.own[row] = close_gate(sums.total, s[at], p.variant.gate);
    });
    block_barrier();

    // this block's part of W2ᵀ de, then da, then dz of its channels
    contract_outer<A>(p.w2, std::int64_t(block.c0) * R, R, R, block.channels, block.own,
                      slices.channels, here, block.scratch,
                      [&](int k, int r, A v) { block.partial[k * R + r] = v; });
    block.join();
    for (int i = thread_index(); i < here * R; i += thread_count()) {
      const std::int64_t at = std::int64_t(n0) * R + i;
      block.hidden[i] = activate_backward(block.sum_partials(i), a[at], p.variant);
      if (block.rank == 0) da[at] = block.hidden[i], h[at] = activate(a[at], p.variant);
    }
    if (layout == Layout::nchw) block.arrive();
    block_barrier();
    contract_outer<A>(
        p.w1, block.c0, block.channels, C, R, block.hidden, R, here, block.scratch,
        [&](int k, int c, A dz) { block.own[block.own_at(k, c)] = dz / A(sizes.pixels); });
    A *mean = block.own, *gates = block.own_s;
    if (layout == Layout::nhwc) {
      block.join();
      mean = block.found, gates = block.found + block.plane;
      block.gather_own(here, mean);
      block.arrive();
      for (int i = thread_index(); i < here * C; i += thread_count())
        gates[i] = s[std::int64_t(n0) * C + i];
    } else {
      each_own([&](int row, int, int, std::int64_t at) { gates[row] = s[at]; });
    }
    block_barrier();

    // dx = g s + dz / P
    block.template walk_slots<V, 4>(
        p.dy, turn, masks, [&](int n) { return block.run_of(p.dx, n); },
        [&](unsigned char*, int k, int i) { return load_staged<X, V>(block.slot(k), i); },
        [&](unsigned char* dx, int k, int i, const Raw<X, V>& raw) {
          A g[V], s_v[V], mean_v[V];
          int rows[V];
          block.template rows_of<V>(k, i, rows);
          unpack<X, V>(raw, g);
          read_rows<layout>(gates, rows, s_v), read_rows<layout>(mean, rows, mean_v);
          SE_UNROLL
          for (int j = 0; j < V; ++j) g[j] = g[j] * s_v[j] + mean_v[j];
          store_values<X, V, Reuse::drop>(dx + std::size_t(i) * sizeof(X), p.dx.type, g);
        });
  }
  if (round > 0) block.wait();  // nobody leaves before its memory is read
#endif
}

}  // namespace

template <>
void launch_backward<SE_NUMBER>(const BackwardTwoSweeps& parameters, Layout layout, bool tail,
                                const Gpu& gpu, void* stream) {
  const auto run = [&](auto kernel) {
    const Shape shape{name_of<SE_NUMBER>("backward_two_sweeps", layout), parameters.cut.items,
                      gpu.threads, 1, parameters.shared.bytes};
    zero(parameters.passing.counters, counters_bytes(parameters.cut), shape, stream);
    launch(kernel, parameters, shape, stream);
  };
  const auto of_layout = [&](auto constant) {
    constexpr Layout of = decltype(constant)::value;
    if constexpr (!std::is_same_v<SE_NUMBER, Any>)
      if (!tail) return run(backward_two_sweeps<SE_NUMBER, of, Identity, false>);
    run(backward_two_sweeps<SE_NUMBER, of, Identity, true>);
  };
  with_layout(layout, of_layout);
}

template <>
void launch_backward<SE_NUMBER>(const BackwardCluster& parameters, Layout layout, bool tail,
                                const Gpu& gpu, void* stream) {
  const auto run = [&](auto kernel) {
    const Slices& slices = parameters.slices;
    launch(kernel, parameters,
           {name_of<SE_NUMBER>("backward_cluster", layout), slices.clusters * slices.ranks,
            gpu.threads, slices.ranks, parameters.shared.bytes},
           stream);
  };
  const auto of_layout = [&](auto constant) {
    constexpr Layout of = decltype(constant)::value;
    if constexpr (!std::is_same_v<SE_NUMBER, Any>) {
      if (tail)
        run(backward_cluster<SE_NUMBER, of, Identity, true>);
      else
        run(backward_cluster<SE_NUMBER, of, Identity, false>);
    }
  };
  with_layout(layout, of_layout);
}

}  // namespace se_kernels::cuda
