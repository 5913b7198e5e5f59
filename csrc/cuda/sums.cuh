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

// How many numbers; their mean in two parts, one near it and what that is off by, so that a
// mean far from zero keeps its digits; Σ (x - mean)².
template <class A>
struct Moments : Numbers<Moments<A>, A, 4> {
  Moments() = default;
  SE_DEVICE Moments(int count, A shift, const Totals<A, 2>& sums) {
    const A off = sums.v[0] * reciprocal(A(count)), rest = sums.v[1] - sums.v[0] * off;
    A(&v)[4] = this->v;
    v[0] = A(count), v[1] = shift, v[2] = off, v[3] = rest < A(0) ? A(0) : rest;
  }
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

// Σ d and Σ d² of d = x - shift, where shift is near the mean, so that little cancels.
template <class A, int V>
struct CollectShifted : CollectTotals<A, V, 2> {
  template <class Shift, int W>
  SE_DEVICE void add_shifted(const Shift& shift, const A (&x)[W], int here) {
    A sum = 0, squares = 0;  // of this row's numbers, before they join the others'
    SE_UNROLL
    for (int j = 0; j < W; ++j) {
      const A d = V > 1 || j < here ? x[j] - shift[j] : A(0);
      if constexpr (V > 1)
        this->add(j, 0, d), this->add(j, 1, d * d);
      else
        sum = j == 0 ? d : sum + d, squares = j == 0 ? d * d : squares + d * d;
    }
    if constexpr (V == 1) this->add(0, 0, sum), this->add(0, 1, squares);
  }
};

}  // namespace se_kernels::cuda
