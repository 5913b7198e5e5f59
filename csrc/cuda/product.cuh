// A product of two matrices, a tile of 64 by 64 at a time: a block stages some terms of each sum in
// shared memory, and a thread keeps 8 by 4 sums. In full float32, or float64.
#pragma once

#include "excite.cuh"

namespace se_kernels::cuda {

constexpr int kProductThreads = 128;
constexpr int kTile = 64;                           // rows, and columns
constexpr int kTileRow = kTile + 4;                 // numbers from row to row: fewer bank conflicts
constexpr int kThreadRows = 8, kThreadColumns = 4;  // sums of a thread
constexpr int kThreadsAcross = kTile / kThreadColumns;
constexpr int kProductBytes = 128 * kTileRow;  // of shared memory
constexpr int kUnrolled = 4;                   // terms

template <class A>
constexpr int kDepth = kProductBytes / 2 / kTileRow / int(sizeof(A));  // terms staged at a time
template <class A>
constexpr int kStaged =
    kTile * kDepth<A> / kProductThreads;  // numbers of them that a thread brings

template <class A>
struct alignas(16) Quad {
  A v[4];
};

// Which element (i, k) of an operand a thread stages, the e-th of its own: lanes lie side by side
// in memory.
template <class A, bool along_terms>
struct Place {
  static constexpr int kLanes = 8, kRounds = kDepth<A> / kLanes;
  static SE_DEVICE int row(int e) {
    return along_terms ? thread_index() / kLanes + kProductThreads / kLanes * (e / kRounds)
                       : thread_index() % kTile;
  }
  static SE_DEVICE int term(int e) {
    return along_terms ? thread_index() % kLanes + kLanes * (e % kRounds)
                       : thread_index() / kTile + kProductThreads / kTile * e;
  }
  // to[e] = read(offset of its element), 0 outside of the rows and the terms from begin to end
  template <class Read>
  static SE_DEVICE void fetch(int rows, int begin, int end, std::int64_t stride,
                              A (&to)[kStaged<A>], const Read& read) {
    SE_UNROLL
    for (int e = 0; e < kStaged<A>; ++e) {
      const int i = row(e), k = begin + term(e);
      to[e] = i < rows && k < end ? read(along_terms ? i * stride + k : i + k * stride) : A(0);
    }
  }
  static SE_DEVICE void stage(A* at, const A (&from)[kStaged<A>]) {
    SE_UNROLL
    for (int e = 0; e < kStaged<A>; ++e) at[term(e) * kTileRow + row(e)] = from[e];
  }
};

// An operand: element (i, k) is data[i stride + k] or, the terms apart, data[i + k stride]. Another
// block of this launch may have written it.
template <class A, bool along_terms>
struct Numbers {
  using At = Place<A, along_terms>;
  const A* data;
  std::int64_t stride;
  SE_DEVICE void fetch(int rows, int begin, int end, A (&to)[kStaged<A>]) const {
    At::fetch(rows, begin, end, stride, to,
              [&](std::int64_t i) { return load_shared_result(data + i); });
  }
};

// The same of weights, from the first on.
template <class A, bool along_terms>
struct WeightMatrix {
  using At = Place<A, along_terms>;
  Weights weights;
  std::int64_t first, stride;
  SE_DEVICE void fetch(int rows, int begin, int end, A (&to)[kStaged<A>]) const {
    const auto fetch_as = [&](auto type) {
      const auto* data = static_cast<const decltype(type)*>(weights.data) + first;
      At::fetch(rows, begin, end, stride, to, [&](std::int64_t i) { return A(widen(data[i])); });
    };
    switch (weights.type) {  // looked at once
      case DType::float32:
        return fetch_as(float{});
      case DType::bfloat16:
        return fetch_as(bfloat16{});
      case DType::float16:
        return fetch_as(float16{});
      case DType::float64:
        if constexpr (sizeof(A) == 8) fetch_as(double{});
    }
  }
};

// sums[i][j] += Σ_k left[k, i] right[k, j] over what is staged.
template <class A>
SE_DEVICE void add_staged(const A* left, const A* right, A (&sums)[kThreadRows][kThreadColumns]) {
  for (int some = 0; some < kDepth<A>; some += kUnrolled) {
    SE_UNROLL
    for (int k = some; k < some + kUnrolled; ++k) {
      const A *rows = left + k * kTileRow, *columns = right + k * kTileRow;
      const Quad<A> first = *reinterpret_cast<const Quad<A>*>(rows),
                    next = *reinterpret_cast<const Quad<A>*>(rows + 4),
                    across = *reinterpret_cast<const Quad<A>*>(columns);
      SE_UNROLL
      for (int i = 0; i < 4; ++i) {
        SE_UNROLL
        for (int j = 0; j < kThreadColumns; ++j) {
          sums[i][j] += first.v[i] * across.v[j];
          sums[i + 4][j] += next.v[i] * across.v[j];
        }
      }
    }
  }
}

struct Nothing {};
SE_DEVICE Nothing nothing(int, int) { return {}; }

// body(i, j, Σ_k left(i, k) right(j, k) for begin <= k < end, load(i, j)) of the rows i and columns
// j. Lanes go along j, and a thread has one j. stage: kProductBytes of shared memory.
template <class A, class Left, class Right, class Load, class Body>
SE_DEVICE void product(A* stage, const Left& left, int rows, const Right& right, int columns,
                       int begin, int end, const Load& load, const Body& body) {
  constexpr int D = kDepth<A>;
  A *left_stage = stage, *right_stage = stage + D * kTileRow;
  const int i0 = thread_index() / kThreadsAcross * kThreadRows,
            j0 = thread_index() % kThreadsAcross * kThreadColumns;
  const bool works = i0 < rows && j0 < columns;
  A sums[kThreadRows][kThreadColumns] = {};
  A next_left[kStaged<A>], next_right[kStaged<A>];
  for (int k0 = begin; begin < end; k0 += D) {
    if (k0 < end) left.fetch(rows, k0, end, next_left), right.fetch(columns, k0, end, next_right);
    if (k0 > begin && works) add_staged(left_stage + i0, right_stage + j0, sums);
    block_barrier();
    if (k0 >= end) break;
    Left::At::stage(left_stage, next_left), Right::At::stage(right_stage, next_right);
    block_barrier();
  }

  // some rows at a time through shared memory, which turns 8 by 4 sums into rows
  constexpr int kRows = 2 * D, kStep = kProductThreads / kTile;
  const int j = thread_index() % kTile;
  for (int first = 0; first < rows; first += kRows) {
    if (works && i0 >= first && i0 < first + kRows) {
      SE_UNROLL
      for (int i = 0; i < kThreadRows; ++i) {
        Quad<A> quad;
        SE_UNROLL
        for (int k = 0; k < kThreadColumns; ++k) quad.v[k] = sums[i][k];
        *reinterpret_cast<Quad<A>*>(stage + (i0 - first + i) * kTileRow + j0) = quad;
      }
    }
    block_barrier();
    if (j < columns)
      strided_for<8>(
          first + thread_index() / kTile, smaller(first + kRows, rows), kStep,
          [&](int i) { return load(i, j); },
          [&](int i, const auto& raw) { body(i, j, stage[(i - first) * kTileRow + j], raw); });
    block_barrier();
  }
}

}  // namespace se_kernels::cuda
