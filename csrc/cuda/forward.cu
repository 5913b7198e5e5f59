// The forward kernels: squeeze, excite, scale in one launch. Compiled once for each SE_NUMBER.
#include "cluster.cuh"
#include "forward.cuh"
#include "runtime.cuh"
#include "scale.cuh"

namespace se_kernels::cuda {
namespace {

template <class Epilogue>
SE_DEVICE Epilogue epilogue(const ForwardParameters& p) {
  if constexpr (Epilogue::kTail)
    return {p.residual.data != nullptr, p.relu};
  else
    return {};
}

template <class X, Layout layout, class Prologue, class Epilogue>
SE_KERNEL(kThreads, 2)
forward_two_sweeps(SE_PARAMETER ForwardTwoSweeps parameters) {
  using A = Sum<X>;
  const ForwardParameters& p = parameters.block;
  const Cut& cut = parameters.cut;
  const Sizes& sizes = p.sizes;
  const Passing& passing = parameters.passing;
  const Room<A> room(parameters.shared, cut);
  A *z = static_cast<A*>(p.z), *a = static_cast<A*>(p.a), *s = static_cast<A*>(p.s);

  const Item item = item_of(cut.first_item + take_ticket(passing.tickets(), room.word), cut);
  const int group = item.group, block = item.index % cut.blocks, split = item.index / cut.blocks;
  const Tile tile = tile_of(group, block, split, sizes, cut);

  if (item.kind == Kind::first_sweep) {
    // equation 2
    const Found<A> found{room.found, room.plane, p.variant.squeeze != Squeeze::avg};
    squeeze_tile<X, layout>(p.x, tile, parameters.access, Prologue{}, found, room.scratch,
                            room.work);
    if (!gather(passing, found, tile, group, block, split, sizes, cut, room.word)) return;
    for (int row = thread_index(); row < tile.rows(); row += thread_count()) {
      const A v = squeezed(p.variant.squeeze, found.get(row), sizes.pixels);
      z[entry(tile, row, sizes.channels)] = room.found[row] = v;
    }
    if (!p.excites) return;
    // equation 3: this tile's part of W1 z
    block_barrier();
    A* partials = partials_of<A>(passing, group, block, sizes, cut);
    contract_inner<A>(p.w1, tile.c0, sizes.reduced, sizes.channels, tile.channels, room.found,
                      tile.channels, tile.images,
                      [&](int k, int r, A v) { partials[k * sizes.reduced + r] = v; });
    publish(passing.squeezed(group));
  } else if (item.kind == Kind::excite) {
    // equation 3: a = W1 z + b1, h = δ(a)
    wait_for(passing.squeezed(group), cut.blocks);
    A* hidden = static_cast<A*>(passing.hidden);
    sum_partials<A>(passing, group, item.index, sizes, cut, room.scratch,
                    [&](int i, std::int64_t at, A v) {
                      if (p.b1.data) v += p.b1.template at<A>(i % sizes.reduced);
                      a[at] = v;
                      hidden[at] = activate(v, p.variant);
                    });
    publish(passing.excited(group, cut));
  } else {
    // equation 3: s = σ(W2 h + b2) of this tile's channels
    A* gates = room.found;
    if (p.excites) {
      wait_for(passing.excited(group, cut), cut.excites);
      for (int row = thread_index(); row < tile.rows(); row += thread_count()) gates[row] = 0;
      for_hidden<A>(passing, tile, sizes, cut, reinterpret_cast<A*>(room.work),
                    [&](const A* h, int r0, int size) {
                      contract_inner<A>(
                          p.w2, std::int64_t(tile.c0) * sizes.reduced + r0, tile.channels,
                          sizes.reduced, size, h, cut.chunk, tile.images,
                          [&](int k, int c, A v) { gates[k * tile.channels + c] += v; });
                    });
      for (int row = thread_index(); row < tile.rows(); row += thread_count()) {
        A e = gates[row];
        if (p.b2.data) e += p.b2.template at<A>(tile.channel_of(row));
        gates[row] = open_gate(e, p.variant.gate);
        if (split == 0) s[entry(tile, row, sizes.channels)] = gates[row];  // the same in all
      }
    } else {
      for (int row = thread_index(); row < tile.rows(); row += thread_count())
        gates[row] = s[entry(tile, row, sizes.channels)];
    }
    block_barrier();
    // equation 4
    scale_tile<X, layout>(p.x, p.residual, p.y, tile, parameters.access, sizes.by_pixels,
                          Prologue{}, epilogue<Epilogue>(p), gates);
  }
}

template <class X, Layout layout, class Prologue, class Epilogue>
SE_KERNEL(kThreads, 1)
forward_cluster(SE_PARAMETER ForwardCluster parameters) {
#if SE_HAS_CLUSTERS
  using A = Sum<X>;
  constexpr int V = Number<X>::kVector;
  const ForwardParameters& p = parameters.block;
  const Sizes& sizes = p.sizes;
  const Block<X, layout> block(sizes, parameters.slices, parameters.shared);
  const int images = parameters.slices.images, C = sizes.channels, R = sizes.reduced;
  const bool tracks = p.variant.squeeze != Squeeze::avg;
  const Found<A> found{block.found, block.plane, tracks};
  A *z = static_cast<A*>(p.z), *a = static_cast<A*>(p.a), *s = static_cast<A*>(p.s);
  const Prologue pre{};
  const Epilogue post = epilogue<Epilogue>(p);

  block.start();
  block.fetch_all(p.x, block.cluster);
  int round = 0;
  for (int turn = block.cluster; turn < block.turns();
       turn += parameters.slices.clusters, ++round) {
    const int n0 = turn * images, here = block.images_of(turn);
    const auto each_own = [&](const auto& use) {
      for (int i = thread_index(); i < here * block.channels; i += thread_count()) {
        const int k = i / block.channels, c = i % block.channels;
        use(k, c, std::int64_t(n0 + k) * C + block.c0 + c);
      }
    };

    // equation 2
    for (int k = 0; k < here; ++k) {
      block.wait_slot(k, round);
      if constexpr (layout == Layout::nchw)
        squeeze_staged_rows<X>(
            block.slot(k), block.channels, sizes.pixels, block.c0, block.channels, pre,
            {found.data + block.own_at(k, 0), found.size, tracks}, block.scratch);
      else
        squeeze_staged_columns<X>(block.slot(k), C, block.count / C, k * C, pre, found,
                                  block.scratch);
    }
    if (round > 0) block.wait();  // what the turn before left is read
    if (layout == Layout::nhwc) block.arrive(), block.wait();
    each_own([&](int k, int c, std::int64_t at) {
      Sums<A> sums;
      if constexpr (layout == Layout::nchw)
        sums = found.get(block.own_at(k, c));
      else
        sums = block.gather(k, c, tracks);
      z[at] = block.own[block.own_at(k, c)] = squeezed(p.variant.squeeze, sums, sizes.pixels);
    });
    block_barrier();

    // equation 3: this block's part of W1 z, then a, then s of its channels
    contract_inner<A>(p.w1, block.c0, R, C, block.channels, block.own, parameters.slices.channels,
                      here, [&](int k, int r, A v) { block.partial[k * R + r] = v; });
    block.join();
    for (int i = thread_index(); i < here * R; i += thread_count()) {
      A v = block.sum_partials(i);
      if (p.b1.data) v += p.b1.template at<A>(i % R);
      if (block.rank == 0) a[std::int64_t(n0) * R + i] = v;
      block.hidden[i] = activate(v, p.variant);
    }
    if (layout == Layout::nchw) block.arrive();
    block_barrier();
    contract_inner<A>(p.w2, std::int64_t(block.c0) * R, block.channels, R, R, block.hidden, R, here,
                      [&](int k, int c, A e) { block.own[block.own_at(k, c)] = e; });
    block_barrier();
    each_own([&](int k, int c, std::int64_t at) {
      A e = block.own[block.own_at(k, c)];
      if (p.b2.data) e += p.b2.template at<A>(block.c0 + c);
      s[at] = block.own[block.own_at(k, c)] = open_gate(e, p.variant.gate);
    });
    const A* gates = block.own;
    if (layout == Layout::nhwc) {
      block.arrive(), block.wait();  // alone, a thread gathers what it wrote itself
      block.gather_own(here, block.found);
      block.arrive();
      gates = block.found;
    }
    block_barrier();

    // equation 4
    struct Starts {
      unsigned char *residual, *y;
    };
    block.template walk_slots<V, 4>(
        p.x, turn, false,
        [&](int n) { return Starts{block.run_of(p.residual, n), block.run_of(p.y, n)}; },
        [&](const Starts& at, int, int i) {
          Raw<X, V> residual{};
          if (Epilogue::kTail && p.residual.data)
            residual = load_raw<X, V, Reuse::drop>(at.residual + std::size_t(i) * sizeof(X),
                                                   p.residual.type);
          return residual;
        },
        [&](const Starts& at, int k, int i, const Raw<X, V>& residual) {
          A v[V], r[V], s_v[V];
          int rows[V];
          block.template rows_of<V>(k, i, rows);
          read_rows<layout>(gates, rows, s_v);
          unpack<X, V>(load_staged<X, V>(block.slot(k), i), v), unpack<X, V>(residual, r);
          SE_UNROLL
          for (int j = 0; j < V; ++j)
            v[j] = post(pre(v[j], block.channel_of(rows[j])) * s_v[j], r[j]);
          store_values<X, V, Reuse::drop>(at.y + std::size_t(i) * sizeof(X), p.y.type, v);
        });
  }
  if (round > 0) block.wait();  // nobody leaves before its memory is read
#endif
}

}  // namespace

template <>
void launch_forward<SE_NUMBER>(const ForwardTwoSweeps& parameters, Layout layout, bool tail,
                               const Gpu& gpu, void* stream) {
  const auto run = [&](auto kernel) {
    const Shape shape{name_of<SE_NUMBER>("forward_two_sweeps", layout), parameters.cut.items,
                      gpu.threads, 1, parameters.shared.bytes};
    zero(parameters.passing.counters, counters_bytes(parameters.cut), shape, stream);
    launch(kernel, parameters, shape, stream);
  };
  const auto of_layout = [&](auto constant) {
    constexpr Layout of = decltype(constant)::value;
    if constexpr (!std::is_same_v<SE_NUMBER, Any>)
      if (!tail) return run(forward_two_sweeps<SE_NUMBER, of, Identity, Plain>);
    run(forward_two_sweeps<SE_NUMBER, of, Identity, Tail>);
  };
  with_layout(layout, of_layout);
}

template <>
void launch_forward<SE_NUMBER>(const ForwardCluster& parameters, Layout layout, bool tail,
                               const Gpu& gpu, void* stream) {
  const auto run = [&](auto kernel) {
    const Slices& slices = parameters.slices;
    launch(kernel, parameters,
           {name_of<SE_NUMBER>("forward_cluster", layout), slices.clusters * slices.ranks,
            gpu.threads, slices.ranks, parameters.shared.bytes},
           stream);
  };
  const auto of_layout = [&](auto constant) {
    constexpr Layout of = decltype(constant)::value;
    if constexpr (!std::is_same_v<SE_NUMBER, Any>) {
      if (tail)
        run(forward_cluster<SE_NUMBER, of, Identity, Tail>);
      else
        run(forward_cluster<SE_NUMBER, of, Identity, Plain>);
    }
  };
  with_layout(layout, of_layout);
}

}  // namespace se_kernels::cuda
