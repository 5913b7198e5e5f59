// The solve: what lies between the sweeps of a batch with a norm before the block, on N×C and N×R
// numbers. What its kernels are given, how they are cut, and what both directions share. A is the
// type of the numbers, float or double; that of u does not matter here.
//
// Items of a kernel come in phases; an item only waits for phases with smaller tickets.
#pragma once

#include <algorithm>

#include "product.cuh"
#include "runtime.cuh"
#include "schedule.cuh"

namespace se_kernels::cuda {

constexpr int kPiece = 256;        // numbers of (N,R) that an item sums
constexpr int kBiasColumns = 32;   // of a bias's gradient, that an item sums
constexpr int kSolveCounters = 4;  // zero at the launch
constexpr int kNormChannels = 8;   // of a block that solves the norm
constexpr int kLeastTerms = 32;    // of the long sum over C, that an item takes

// Blocks that a multiprocessor has room for at least.
template <class A>
constexpr int kSolveBlocks = sizeof(A) == 4 ? 3 : 2;

// Tiles of images, channels and the hidden layer; parts of a sum over C, each of `terms`; pieces of
// (N,R).
struct SolvePlan {
  int image_tiles, channel_tiles, hidden_tiles, splits, terms, pieces;
};

inline int parts_of(std::int64_t size, int part) { return int((size + part - 1) / part); }

// apart: an item has one tile of the hidden layer, else all of them.
inline SolvePlan solve_plan(const Problem& p, bool apart, const Gpu& gpu) {
  SolvePlan plan{};
  plan.image_tiles = parts_of(p.images, kTile), plan.channel_tiles = parts_of(p.channels, kTile);
  plan.hidden_tiles = parts_of(p.reduced, kTile);
  const int products = plan.image_tiles * (apart ? plan.hidden_tiles : 1),
            wanted = std::max(1, gpu.multiprocessors / std::max(1, products)),
            splits = std::min(wanted, parts_of(p.channels, kLeastTerms));
  plan.terms = parts_of(parts_of(p.channels, splits), kLeastTerms) * kLeastTerms;
  plan.splits = parts_of(p.channels, plan.terms);
  // one of no numbers where R = 0: it waits for what came before, and is waited for
  plan.pieces = std::max(1, parts_of(p.images * p.reduced, kPiece));
  return plan;
}

constexpr int kSolveBytes = 16 + kProductBytes;  // of a block's shared memory: a word before

template <class A>
SE_DEVICE A* solve_stage() {
  return reinterpret_cast<A*>(shared_memory() + 16);
}

// The block's item, by a ticket.
SE_DEVICE int take_solve_item(std::uint32_t* tickets) {
  int* item = reinterpret_cast<int*>(shared_memory());
  if (thread_index() == 0) *item = int(take(tickets));
  block_barrier();
  return *item;
}

// ---- the norm

struct NormSolve {
  int images, channels;
  double pixels, momentum, eps;
  bool training;
  Vector mean, var;           // of the norm; in training mode the running ones
  const double *means, *m2;   // (N,C)
  const void *weight, *bias;  // (C); may be null
  double* moved;              // (2,C); may be null
  void* norm;                 // (4,C)
  void *squeezed, *z;       // (N,C): means less the norm's, and their norm; both null if not wanted
  std::uint32_t* counters;  // `zeroed` of them, of later launches: it zeroes them
  int zeroed;
};

// ---- the excitation

struct ExciteSolve {
  int images, channels, reduced;
  Variant variant;
  Weights w1, w2, b1, b2;
  SolvePlan plan;
  const void* z;
  void *a, *h, *s;
  void* parts;  // (splits,N,R)
  std::uint32_t* counters;
};

// ---- backward

// Items of each phase but the last, the norm's gradients.
struct BackwardPhases {
  int gates, pieces, squeezed, w1, w2, b1, b2;
};

struct BackwardSolve {
  int images, channels, reduced;
  BackwardPhases phases;  // by the launcher
  double pixels, count;   // count: N P
  Variant variant;
  Weights w1, w2;
  SolvePlan plan;
  bool active;       // an activation between norm and squeeze
  const void* sums;  // of NormScaleBackward
  const void *norm, *squeezed;
  const void *a, *s;
  void *de, *z, *da, *h, *d;               // (N,C), (N,C), (N,R), (N,R), (N,C); d = dz / P
  void* parts;                             // (splits,N,R)
  double* channel_parts;                   // (2,image tiles,C)
  void *dweight, *dbias, *slope, *offset;  // (C)
  void *dw1, *dw2, *db1, *db2;             // each may be null
  std::uint32_t* counters;                 // null: only the weights' gradients, of what is there
};

template <class A>
void launch_solve_norm(const NormSolve&, const Gpu&, void* stream);
template <class A>
void launch_solve_excite(const ExciteSolve&, const Gpu&, void* stream);
template <class A>
void launch_solve_backward(BackwardSolve, const Gpu&, void* stream);

template <class A>
const char* number_name() {
  return sizeof(A) == 4 ? "float32" : "float64";
}

// ---- shared by both directions

// A product of (N,C) with a matrix of weights over a split's channels, to its part of (splits,N,R):
// the images of a tile, the tiles of the hidden layer from `first` to `end`.
template <class A, class Left, class Right>
SE_DEVICE void hidden_product(A* stage, const SolvePlan& plan, int images, int channels,
                              int reduced, int image_tile, int split, int first, int end, A* parts,
                              const Left& left, const Right& right) {
  const int n0 = image_tile * kTile, rows = smaller(kTile, images - n0), c0 = split * plan.terms,
            c1 = smaller(c0 + plan.terms, channels);
  for (int hidden_tile = first; hidden_tile < end; ++hidden_tile) {
    const int r0 = hidden_tile * kTile, columns = smaller(kTile, reduced - r0);
    product<A>(stage, left(n0), rows, right(r0), columns, c0, c1, nothing,
               [&](int i, int j, A v, Nothing) {
                 parts[(std::int64_t(split) * images + n0 + i) * reduced + r0 + j] = v;
               });
  }
}

// body(i, Σ over the splits) for a piece's numbers i of (N,R).
template <class A, class Body>
SE_DEVICE void sum_piece(const A* parts, int splits, int piece, std::int64_t numbers,
                         const Body& body) {
  for (int k = thread_index(); k < kPiece; k += thread_count()) {
    const std::int64_t i = std::int64_t(piece) * kPiece + k;
    if (i >= numbers) return;
    A total = 0;
    strided_for<8>(
        0, splits, 1, [&](int split) { return load_shared_result(parts + split * numbers + i); },
        [&](int, A v) { total += v; });
    body(i, total);
  }
}

}  // namespace se_kernels::cuda
