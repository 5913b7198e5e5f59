// The solve backward: from the sums of the first sweep to what the second multiplies with, and the
// gradients of the norm and the weights.
#include "solve.cuh"

namespace se_kernels::cuda {
namespace {

template <class A>
SE_DEVICE void store_weight(void* data, DType type, std::int64_t i, A v) {
  switch (type) {
    case DType::float32:
      static_cast<float*>(data)[i] = float(v);
      return;
    case DType::float64:
      static_cast<double*>(data)[i] = double(v);
      return;
    case DType::bfloat16:
      return narrow(float(v), static_cast<bfloat16*>(data)[i]);
    case DType::float16:
      return narrow(float(v), static_cast<float16*>(data)[i]);
  }
}

// de and, without an activation, z of some images' channels from the first sweep's sums.
template <class A>
SE_DEVICE void close_gates(const BackwardSolve& p, int n0, int n1, int c0, int c1) {
  const std::int64_t C = p.channels, plane = p.images * C;
  const A *sums = static_cast<const A*>(p.sums), *s = static_cast<const A*>(p.s),
          *squeezed = static_cast<const A*>(p.squeezed), *norm = static_cast<const A*>(p.norm);
  A *de = static_cast<A*>(p.de), *z = static_cast<A*>(p.z);
  constexpr int kSteps = kProductThreads / kBiasColumns;
  struct Loaded {
    A total, moment, s, squeezed;
  };
  for (int c = c0 + thread_index() % kBiasColumns; c < c1; c += kBiasColumns) {
    const A scale = norm[C + c], bias = norm[2 * C + c];
    strided_for<4>(
        n0 + thread_index() / kBiasColumns, n1, kSteps,
        [&](int n) {
          const std::int64_t at = n * C + c;
          if (p.active) return Loaded{sums[at], A(0), s[at], A(0)};
          return Loaded{sums[at], sums[plane + at], s[at], squeezed[at]};
        },
        [&](int n, const Loaded& raw) {
          const std::int64_t at = n * C + c;
          const A ds = p.active ? raw.total : scale * raw.moment + bias * raw.total;
          de[at] = close_gate(ds, raw.s, p.variant.gate);
          if (!p.active) z[at] = raw.squeezed * scale + bias;
        });
  }
}

// d of a tile, and its part of what the norm's bias and scale sum.
template <class A>
SE_DEVICE void squeeze_gradient(const BackwardSolve& p, A* stage, int image_tile,
                                int channel_tile) {
  const int R = p.reduced, n0 = image_tile * kTile, c0 = channel_tile * kTile,
            rows = smaller(kTile, p.images - n0), columns = smaller(kTile, p.channels - c0);
  const std::int64_t C = p.channels, plane = p.images * C;
  const A pixels = A(p.pixels), *s = static_cast<const A*>(p.s),
          *total = static_cast<const A*>(p.sums) + (p.active ? plane : 0), *moment = total + plane,
          *opened = p.active ? moment + plane : nullptr,
          *squeezed = p.active ? opened + plane : static_cast<const A*>(p.squeezed);
  A* d = static_cast<A*>(p.d);
  double of_bias = 0, of_scale = 0;
  struct Loaded {
    A s, total, moment, open, open_moment;
  };
  product<A>(
      stage, Numbers<A, true>{static_cast<const A*>(p.da) + std::int64_t(n0) * R, R}, rows,
      WeightMatrix<A, false>{p.w1, c0, C}, columns, 0, R,
      [&](int i, int j) {
        const std::int64_t at = (n0 + i) * C + c0 + j;
        return Loaded{s[at], total[at], moment[at], opened ? opened[at] : pixels,
                      opened ? squeezed[at] : pixels * squeezed[at]};
      },
      [&](int i, int j, A dz, const Loaded& raw) {
        const A d_i = dz / pixels;
        d[(n0 + i) * C + c0 + j] = d_i;
        of_bias += double(d_i * raw.open + raw.s * raw.total);
        of_scale += double(d_i * raw.open_moment + raw.s * raw.moment);
      });
  // the two rows of threads that have the tile's columns
  static_assert(kProductThreads == 2 * kTile);
  double* halves = reinterpret_cast<double*>(stage);
  const int j = thread_index() % kTile;
  if (thread_index() >= kTile) halves[j] = of_bias, halves[kTile + j] = of_scale;
  block_barrier();
  if (thread_index() >= kTile || j >= columns) return;
  const std::int64_t at = image_tile * C + c0 + j, parts = p.plan.image_tiles * C;
  p.channel_parts[at] = of_bias + halves[j];
  p.channel_parts[parts + at] = of_scale + halves[kTile + j];
}

// A tile of Σ_n rows[n, i] columns[n, j], stored to (.., width).
template <class A>
SE_DEVICE void weight_gradient(const BackwardSolve& p, A* stage, const void* row_numbers,
                               int height, int row_tile, const void* column_numbers, int width,
                               int column_tile, void* to) {
  const int i0 = row_tile * kTile, j0 = column_tile * kTile;
  product<A>(stage, Numbers<A, false>{static_cast<const A*>(row_numbers) + i0, height},
             smaller(kTile, height - i0),
             Numbers<A, false>{static_cast<const A*>(column_numbers) + j0, width},
             smaller(kTile, width - j0), 0, p.images, nothing, [&](int i, int j, A v, Nothing) {
               store_weight(to, p.w1.type, std::int64_t(i0 + i) * width + j0 + j, v);
             });
}

// Σ_n of some columns of (N, width).
template <class A>
SE_DEVICE void bias_gradient(const BackwardSolve& p, A* stage, const void* numbers, int width,
                             int item, void* to) {
  constexpr int kRows = kProductThreads / kBiasColumns;
  double* scratch = reinterpret_cast<double*>(stage);
  const int lane = thread_index() % kBiasColumns, column = item * kBiasColumns + lane;
  double total = 0;
  if (column < width)
    strided_for<8>(
        thread_index() / kBiasColumns, p.images, kRows,
        [&](int n) {
          return load_shared_result(static_cast<const A*>(numbers) + std::int64_t(n) * width +
                                    column);
        },
        [&](int, A v) { total += double(v); });
  scratch[thread_index()] = total;
  block_barrier();
  if (thread_index() >= kBiasColumns || column >= width) return;
  for (int row = 1; row < kRows; ++row) total += scratch[row * kBiasColumns + lane];
  store_weight(to, p.w1.type, column, A(total));
}

// The gradients of the norm's weight and bias, and what those of its statistics add to du.
template <class A>
SE_DEVICE void norm_gradient(const BackwardSolve& p, int item) {
  const std::int64_t C = p.channels, c = item * kProductThreads + thread_index(),
                     parts = p.plan.image_tiles * C;
  if (c >= C) return;
  double of_bias = 0, of_scale = 0;
  for (int tile = 0; tile < p.plan.image_tiles; ++tile) {
    of_bias += load_shared_result(p.channel_parts + tile * C + c);
    of_scale += load_shared_result(p.channel_parts + parts + tile * C + c);
  }
  const A *norm = static_cast<const A*>(p.norm), rstd = norm[3 * C + c],
          share = -norm[C + c] / A(p.count), dbias = A(of_bias), dweight = rstd * A(of_scale);
  static_cast<A*>(p.dbias)[c] = dbias, static_cast<A*>(p.dweight)[c] = dweight;
  static_cast<A*>(p.slope)[c] = share * rstd * dweight;  // rstd³ may be no float
  static_cast<A*>(p.offset)[c] = share * dbias;
}

// Phases: de, and products of it with W2 over some channels each; their sums, da and h; products of
// da with W1, d, and sums over some images; the weights' gradients; the biases'; the norm's.
template <class A>
SE_KERNEL(kProductThreads, kSolveBlocks<A>)
solve_backward(SE_PARAMETER BackwardSolve p) {
  const SolvePlan& plan = p.plan;
  const BackwardPhases& phases = p.phases;
  const int N = p.images, C = p.channels, R = p.reduced;
  A *stage = solve_stage<A>(), *parts = static_cast<A*>(p.parts);
  int item = p.counters ? take_solve_item(p.counters)
                        : phases.gates + phases.pieces + phases.squeezed + block_index();

  if (item < phases.gates) {
    const int image_tile = item / plan.splits, split = item % plan.splits, n0 = image_tile * kTile,
              c0 = split * plan.terms;
    close_gates<A>(p, n0, smaller(n0 + kTile, N), c0, smaller(c0 + plan.terms, C));
    block_barrier();
    hidden_product<A>(
        stage, plan, N, C, R, image_tile, split, 0, plan.hidden_tiles, parts,
        [&](int n) {
          return Numbers<A, true>{static_cast<const A*>(p.de) + std::int64_t(n) * C, C};
        },
        [&](int r) { return WeightMatrix<A, false>{p.w2, r, R}; });
    return publish(p.counters + 1);
  }
  item -= phases.gates;

  if (item < phases.pieces) {
    wait_for(p.counters + 1, phases.gates);
    sum_piece(parts, plan.splits, item, std::int64_t(N) * R, [&](std::int64_t i, A dh) {
      const A a = static_cast<const A*>(p.a)[i];
      static_cast<A*>(p.da)[i] = activate_backward(dh, a, p.variant);
      static_cast<A*>(p.h)[i] = activate(a, p.variant);
    });
    return publish(p.counters + 2);
  }
  item -= phases.pieces;

  if (p.counters) wait_for(p.counters + 2, phases.pieces);
  if (item < phases.squeezed) {
    squeeze_gradient<A>(p, stage, item / plan.channel_tiles, item % plan.channel_tiles);
    return publish(p.counters + 3);
  }
  item -= phases.squeezed;

  if (item < phases.w1)
    return weight_gradient<A>(p, stage, p.da, R, item / plan.channel_tiles, p.z, C,
                              item % plan.channel_tiles, p.dw1);
  item -= phases.w1;
  if (item < phases.w2)
    return weight_gradient<A>(p, stage, p.de, C, item / plan.hidden_tiles, p.h, R,
                              item % plan.hidden_tiles, p.dw2);
  item -= phases.w2;
  if (item < phases.b1) return bias_gradient<A>(p, stage, p.da, R, item, p.db1);
  item -= phases.b1;
  if (item < phases.b2) return bias_gradient<A>(p, stage, p.de, C, item, p.db2);
  item -= phases.b2;

  wait_for(p.counters + 3, phases.squeezed);
  norm_gradient<A>(p, item);
}

}  // namespace

template <class A>
void launch_solve_backward(BackwardSolve p, const Gpu&, void* stream) {
  const SolvePlan& plan = p.plan;
  const int matrix = plan.channel_tiles * plan.hidden_tiles;
  p.phases = {plan.image_tiles * plan.splits,
              plan.pieces,
              plan.image_tiles * plan.channel_tiles,
              p.dw1 ? matrix : 0,
              p.dw2 ? matrix : 0,
              p.db1 ? parts_of(p.reduced, kBiasColumns) : 0,
              p.db2 ? parts_of(p.channels, kBiasColumns) : 0};
  const int weights = p.phases.w1 + p.phases.w2 + p.phases.b1 + p.phases.b2,
            items = p.counters ? p.phases.gates + p.phases.pieces + p.phases.squeezed + weights +
                                     parts_of(p.channels, kProductThreads)
                               : weights;
  if (items == 0) return;
  const Shape shape{std::string("solve_backward<") + number_name<A>() + ">", items, kProductThreads,
                    kSolveBytes};
  launch(solve_backward<A>, p, shape, stream);
}
template void launch_solve_backward<float>(BackwardSolve, const Gpu&, void*);
template void launch_solve_backward<double>(BackwardSolve, const Gpu&, void*);

}  // namespace se_kernels::cuda
