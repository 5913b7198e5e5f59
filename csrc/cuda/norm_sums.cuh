// What a sweep before or behind the norm finds of each (n, c): sums, or the mean with the squares
// around it.
#pragma once

#include "number.cuh"

namespace se_kernels::cuda {

template <class A, int K>
struct Totals {
  static constexpr int kNumbers = K;
  A v[K] = {};

  template <class I>
  SE_DEVICE void put(A* data, I size, I at) const {
    SE_UNROLL
    for (int k = 0; k < K; ++k) data[k * size + at] = v[k];
  }
  static SE_DEVICE Totals get(const A* data, int size, int at) {
    Totals out;
    SE_UNROLL
    for (int k = 0; k < K; ++k) out.v[k] = data[k * size + at];
    return out;
  }
  SE_DEVICE void merge(const Totals& other) {
    SE_UNROLL
    for (int k = 0; k < K; ++k) v[k] += other.v[k];
  }
  SE_DEVICE void exchange(int mask) {
    SE_UNROLL
    for (int k = 0; k < K; ++k) v[k] += shuffle_xor(v[k], mask);
  }
};

// Of a row, or of each of V channels: the j-th number's terms are added to sums of [j], or of [0].
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

// How many numbers; their mean in two parts, one of the numbers and what it is off by, so that a
// mean far from zero keeps its digits; Σ (x - mean)².
template <class A>
struct Moments {
  static constexpr int kNumbers = 4;
  A v[4] = {};

  template <class I>
  SE_DEVICE void put(A* data, I size, I at) const {
    SE_UNROLL
    for (int k = 0; k < kNumbers; ++k) data[k * size + at] = v[k];
  }
  static SE_DEVICE Moments get(const A* data, int size, int at) {
    Moments out;
    SE_UNROLL
    for (int k = 0; k < kNumbers; ++k) out.v[k] = data[k * size + at];
    return out;
  }
  SE_DEVICE double mean() const { return double(v[1]) + double(v[2]); }
  SE_DEVICE void merge(const Moments& other) {  // Chan, Golub and LeVeque
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
  SE_DEVICE void exchange(int mask) {
    Moments other;
    SE_UNROLL
    for (int k = 0; k < kNumbers; ++k) other.v[k] = shuffle_xor(v[k], mask);
    merge(other);
  }
};

// A thread's numbers of a row, or of each of V channels, less the first of them; eight of a row
// around their own mean first. Youngs and Cramer.
template <class A, int V>
struct CollectMoments {
  A count = 0, shift[V], total[V] = {}, squares[V] = {};

  template <int W>
  SE_DEVICE void add(const A (&x)[W], int here) {
    const A before = count, added = V == 1 ? A(here) : A(1);
    if (before == A(0)) {
      SE_UNROLL
      for (int j = 0; j < V; ++j) shift[j] = x[j] - x[j] == A(0) ? x[j] : A(0);
    }
    count += added;
    const A share = before > A(0) ? reciprocal(before) : A(0),
            weight = before * added * reciprocal(count);
    if constexpr (V == 1) {
      A d[W], sum = 0, around = 0;
      SE_UNROLL
      for (int j = 0; j < W; ++j) d[j] = j < here ? x[j] - shift[0] : A(0), sum += d[j];
      const A mean = W == 1 ? sum : sum * reciprocal(added);
      SE_UNROLL
      for (int j = 0; j < W; ++j)
        if (j < here) around += (d[j] - mean) * (d[j] - mean);
      const A off = mean - total[0] * share;
      squares[0] += around + off * off * weight, total[0] += sum;
    } else {
      SE_UNROLL
      for (int j = 0; j < V; ++j) {
        const A d = x[j] - shift[j], off = d - total[j] * share;
        squares[j] += off * off * weight, total[j] += d;
      }
    }
  }
  SE_DEVICE Moments<A> get(int j) const {
    if (count == A(0)) return {};
    return {{count, shift[j], total[j] * reciprocal(count), squares[j]}};
  }
};

}  // namespace se_kernels::cuda
