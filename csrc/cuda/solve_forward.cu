// The solve forward: from the images' moments to the norm, and from what was squeezed to the gates.
#include <cmath>

#include "solve.cuh"

namespace se_kernels::cuda {
namespace {

// Σ over the rows of threads of each lane's channel, which all get.
SE_DEVICE double sum_rows(double v, double* scratch) {
  const int lane = thread_index() % kNormChannels, rows = thread_count() / kNormChannels;
  scratch[thread_index()] = v;
  block_barrier();
  double total = 0;
  for (int row = 0; row < rows; ++row) total += scratch[row * kNormChannels + lane];
  block_barrier();
  return total;
}

// Statistics by Chan's formula from those of the images, the running ones moved towards them, the
// norm's numbers, and without an activation z.
template <class A>
SE_KERNEL(kThreads, 2)
solve_norm(SE_PARAMETER NormSolve p) {
  const int lane = thread_index() % kNormChannels, row = thread_index() / kNormChannels,
            rows = thread_count() / kNormChannels, N = p.images, C = p.channels,
            c = block_index() * kNormChannels + lane;
  const bool is_channel = c < C;
  const auto at = [&](int n) { return std::int64_t(n) * C + c; };
  double* scratch = reinterpret_cast<double*>(shared_memory());
  for (int i = block_index() * thread_count() + thread_index(); i < p.zeroed;
       i += block_count() * thread_count())
    p.counters[i] = 0;

  double mean = 0, var = 0, m2 = 0;
  if (p.training) {
    // about the first image's mean, so that a constant channel has exactly its constant
    double near = is_channel && N > 0 ? p.means[c] : 0;
    if (near - near != 0) near = 0;
    if (is_channel)
      strided_for<8>(
          row, N, rows, [&](int n) { return p.means[at(n)]; },
          [&](int, double v) { mean += v - near; });
    mean = near + sum_rows(mean, scratch) / N;
    struct Image {
      double mean, m2;
    };
    if (is_channel)
      strided_for<8>(
          row, N, rows, [&](int n) { return Image{p.means[at(n)], p.m2[at(n)]}; },
          [&](int, const Image& image) {
            const double gap = image.mean - mean;
            m2 += image.m2 + p.pixels * gap * gap;
          });
    m2 = sum_rows(m2, scratch);
    var = m2 / (N * p.pixels);
  } else if (is_channel) {
    mean = load_any<double>(p.mean.data, p.mean.type, c);
    var = load_any<double>(p.var.data, p.var.type, c);
  }
  if (!is_channel) return;
  if (p.moved && row == 0) {
    const double kept = 1 - p.momentum, count = N * p.pixels;
    p.moved[c] = p.momentum * mean + kept * load_any<double>(p.mean.data, p.mean.type, c);
    p.moved[C + c] =
        p.momentum * (m2 / (count - 1)) + kept * load_any<double>(p.var.data, p.var.type, c);
  }

  const A *weight = static_cast<const A*>(p.weight), *bias = static_cast<const A*>(p.bias);
  const A rstd = A(1) / std::sqrt(A(var) + A(p.eps)), centre = A(mean),
          scale = weight ? rstd * weight[c] : rstd, shift = bias ? bias[c] : A(0);
  if (row == 0) {
    A* norm = static_cast<A*>(p.norm) + c;
    norm[0] = centre, norm[C] = scale, norm[2 * std::int64_t(C)] = shift;
    norm[3 * std::int64_t(C)] = rstd;
  }
  if (!p.squeezed) return;
  strided_for<8>(
      row, N, rows, [&](int n) { return p.means[at(n)]; },
      [&](int n, double v) {
        const A centred = A(v - double(centre));
        static_cast<A*>(p.squeezed)[at(n)] = centred;
        static_cast<A*>(p.z)[at(n)] = centred * scale + shift;
      });
}

// Equation 3 for the whole batch. Phases: products with W1 over some channels each; their sums, a
// and h; products with W2, and s.
template <class A>
SE_KERNEL(kProductThreads, kSolveBlocks<A>)
solve_excite(SE_PARAMETER ExciteSolve p) {
  const SolvePlan& plan = p.plan;
  const int N = p.images, C = p.channels, R = p.reduced,
            products = plan.image_tiles * plan.hidden_tiles * plan.splits;
  std::uint32_t *tickets = p.counters, *multiplied = tickets + 1, *summed = tickets + 2;
  A *stage = solve_stage<A>(), *a = static_cast<A*>(p.a), *h = static_cast<A*>(p.h),
    *s = static_cast<A*>(p.s), *parts = static_cast<A*>(p.parts);
  int item = take_solve_item(tickets);

  if (item < products) {
    const int split = item % plan.splits, hidden_tile = item / plan.splits % plan.hidden_tiles,
              image_tile = item / plan.splits / plan.hidden_tiles;
    const A* z = static_cast<const A*>(p.z);
    hidden_product<A>(
        stage, plan, N, C, R, image_tile, split, hidden_tile, hidden_tile + 1, parts,
        [&](int n0) { return Numbers<A, true>{z + std::int64_t(n0) * C, C}; },
        [&](int r0) { return WeightMatrix<A, true>{p.w1, std::int64_t(r0) * C, C}; });
    return publish(multiplied);
  }
  item -= products;

  if (item < plan.pieces) {
    wait_for(multiplied, products);
    sum_piece(parts, plan.splits, item, std::int64_t(N) * R, [&](std::int64_t i, A total) {
      const A a_i = p.b1.data ? total + p.b1.at<A>(i % R) : total;
      a[i] = a_i, h[i] = activate(a_i, p.variant);
    });
    return publish(summed);
  }
  item -= plan.pieces;

  wait_for(summed, plan.pieces);
  const int n0 = item / plan.channel_tiles * kTile, c0 = item % plan.channel_tiles * kTile,
            rows = smaller(kTile, N - n0), columns = smaller(kTile, C - c0);
  product<A>(stage, Numbers<A, true>{h + std::int64_t(n0) * R, R}, rows,
             WeightMatrix<A, true>{p.w2, std::int64_t(c0) * R, R}, columns, 0, R, nothing,
             [&](int i, int j, A v, Nothing) {
               const A e = p.b2.data ? v + p.b2.at<A>(c0 + j) : v;
               s[std::int64_t(n0 + i) * C + c0 + j] = open_gate(e, p.variant.gate);
             });
}

}  // namespace

template <class A>
void launch_solve_norm(const NormSolve& p, const Gpu& gpu, void* stream) {
  const Shape shape{std::string("solve_norm<") + number_name<A>() + ">",
                    parts_of(p.channels, kNormChannels), gpu.threads,
                    gpu.threads * int(sizeof(double))};
  launch(solve_norm<A>, p, shape, stream);
}
template void launch_solve_norm<float>(const NormSolve&, const Gpu&, void*);
template void launch_solve_norm<double>(const NormSolve&, const Gpu&, void*);

template <class A>
void launch_solve_excite(const ExciteSolve& p, const Gpu&, void* stream) {
  const SolvePlan& plan = p.plan;
  const int items =
      plan.image_tiles * (plan.hidden_tiles * plan.splits + plan.channel_tiles) + plan.pieces;
  const Shape shape{std::string("solve_excite<") + number_name<A>() + ">", items, kProductThreads,
                    kSolveBytes};
  launch(solve_excite<A>, p, shape, stream);
}
template void launch_solve_excite<float>(const ExciteSolve&, const Gpu&, void*);
template void launch_solve_excite<double>(const ExciteSolve&, const Gpu&, void*);

}  // namespace se_kernels::cuda
