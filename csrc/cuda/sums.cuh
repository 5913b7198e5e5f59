// What a reduction finds of each (n, c): sums; the squeeze's, with a maximum; the mean with the
// squares around it. Each with what a thread collects of a row (V = 1), or of each of V channels.
#pragma once

#include <cmath>

#include "number.cuh"

namespace se_kernels::cuda {

// kNumbers numbers, alone or `size` apart in memory.
template <class S, class A, int K>
struct Numbers {
  static constexpr int kNumbers = K;
  A v[K] = {};

  template <class I>
  SE_DEVICE void put(A* data, I size, I at) const {
    SE_UNROLL
    for (int k = 0; k < K; ++k) data[k * size + at] = v[k];
  }
  static SE_DEVICE S get(const A* data, int size, int at) {
    S out;
    SE_UNROLL
    for (int k = 0; k < K; ++k) out.v[k] = data[k * size + at];
    return out;
  }
  SE_DEVICE void exchange(int mask) {
    S other;
    SE_UNROLL
    for (int k = 0; k < K; ++k) other.v[k] = shuffle_xor(v[k], mask);
    static_cast<S*>(this)->merge(other);
  }
};

template <class A, int K>
struct Totals : Numbers<Totals<A, K>, A, K> {
  SE_DEVICE void merge(const Totals& other) {
    SE_UNROLL
    for (int k = 0; k < K; ++k) this->v[k] += other.v[k];
  }
};

template <class A, int V, int K>
struct CollectTotals {
  Totals<A, K> sums[V];
  SE_DEVICE Totals<A, K> get(int j) const { return sums[j]; }
  SE_DEVICE void add(int j, int k, A term) { sums[V == 1 ? 0 : j].v[k] += term; }
};
template <int K>
struct Of {
  template <class A, int V>
  using Collect = CollectTotals<A, V, K>;
};

// Σ of some terms, the largest x, and how many equal it.
template <class A>
struct Peaks : Numbers<Peaks<A>, A, 3> {
  SE_DEVICE Peaks() { this->v[1] = -INFINITY; }
  // A NaN replaces the peak, and is not replaced but by one.
  SE_DEVICE void meet(A x, A times) {
    A &peak = this->v[1], &ties = this->v[2];
    if (x > peak || x != x)
      peak = x, ties = times;
    else if (x == peak)
      ties += times;
  }
  SE_DEVICE void merge(const Peaks& other) {
    this->v[0] += other.v[0];
    if (other.v[2] > 0) meet(other.v[1], other.v[2]);
  }
};

template <class A, int V>
struct CollectPeaks {
  Peaks<A> sums[V];
  SE_DEVICE Peaks<A> get(int j) const { return sums[j]; }
  SE_DEVICE void add(int j, A term, A x) {
    sums[V == 1 ? 0 : j].v[0] += term;
    sums[V == 1 ? 0 : j].meet(x, A(1));
  }
};

// How many numbers; their mean in two parts, one of the numbers and what it is off by, so that a
// mean far from zero keeps its digits; Σ (x - mean)².
template <class A>
struct Moments : Numbers<Moments<A>, A, 4> {
  SE_DEVICE double mean() const { return double(this->v[1]) + double(this->v[2]); }
  SE_DEVICE void merge(const Moments& other) {  // Chan, Golub and LeVeque
    A(&v)[4] = this->v;
    const A before = v[0], added = other.v[0];
    if (added == A(0)) return;
    if (before == A(0)) {
      *this = other;
      return;
    }
    v[0] += added;
    const A delta = (other.v[1] - v[1]) + (other.v[2] - v[2]), share = added * reciprocal(v[0]);
    v[3] += other.v[3] + delta * delta * (before * share);
    v[2] += delta - delta == A(0) ? delta * share : other.v[2];  // an infinite mean stays
  }
};

// Sums of the numbers less the mean of the first few of them (of each channel's first), and of the
// squares of that: of a few numbers, so that little cancels.
template <class A, int V>
struct CollectMoments {
  A count = 0, shift[V], total[V] = {}, squares[V] = {};

  template <int W>
  SE_DEVICE void add(const A (&x)[W], int here) {
    if (count == A(0)) {
      A first[V] = {};
      SE_UNROLL
      for (int j = 0; j < W; ++j)
        if (V > 1 || j < here) first[V == 1 ? 0 : j] += x[j];
      SE_UNROLL
      for (int c = 0; c < V; ++c) {
        if (V == 1) first[c] *= reciprocal(A(here));
        shift[c] = first[c] - first[c] == A(0) ? first[c] : A(0);
      }
    }
    count += V == 1 ? A(here) : A(1);
    A sum[V] = {}, square[V] = {};
    SE_UNROLL
    for (int j = 0; j < W; ++j) {
      const int c = V == 1 ? 0 : j;
      const A d = V > 1 || j < here ? x[j] - shift[c] : A(0);
      sum[c] += d, square[c] += d * d;
    }
    SE_UNROLL
    for (int c = 0; c < V; ++c) total[c] += sum[c], squares[c] += square[c];
  }
  SE_DEVICE Moments<A> get(int j) const {
    Moments<A> out;
    if (count == A(0)) return out;
    const A off = total[j] * reciprocal(count), rest = squares[j] - total[j] * off;
    out.v[0] = count, out.v[1] = shift[j], out.v[2] = off, out.v[3] = rest < A(0) ? A(0) : rest;
    return out;
  }
};

}  // namespace se_kernels::cuda
