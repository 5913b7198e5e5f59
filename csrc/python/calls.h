// The tensors of each call, in the order of its arguments: the same for both native libraries.
#pragma once

#include "reader.h"

namespace se_kernels {

// The norm (3, C), in the compute type of the phase, and pre.
inline Norm read_norm(Reader& r, Problem& p) {
  const Reader::Rows rows = r.rows();
  p.w_type = rows.type;
  return {rows[0], rows[1], rows[2], r.pre()};
}

inline void read(Reader& r, Problem& p, Forward& f) {
  f.x = r.x(p), f.residual = r.input(), f.y = r.output();
  f.w1 = r.w1(p), f.w2 = r.in(), f.b1 = r.in(), f.b2 = r.in();
  f.mask = r.bits(), f.z = r.out(), f.a = r.out(), f.s = r.out();
}

inline void read(Reader& r, Problem& p, SqueezeForward& f) {
  f.x = r.x(p), f.z = r.sums(p), p.squeeze = r.squeeze();
}

inline void read(Reader& r, Problem& p, ScaleForward& f) {
  f.x = r.x(p), f.residual = r.input(), f.y = r.output(), f.s = r.sums(p), f.mask = r.bits();
  p.post = r.post();
}

inline void read(Reader& r, Problem& p, ScaleBackward& b) {
  b.x = r.x(p), b.dy = r.input(), b.mask = r.bits(), b.dx = r.output(), b.dr = r.output();
  b.s = r.sums(p), b.ds = r.out();
}

inline void read(Reader& r, Problem& p, SqueezeBackward& b) {
  b.x = r.x(p), b.g = r.input(), b.dx = r.output(), b.s = r.in(), b.dz = r.sums(p);
  p.squeeze = r.squeeze();
}

// The compute type is double if `wide`.
inline void read(Reader& r, Problem& p, NormMoments& f) {
  f.x = r.x(p), f.mean = r.out(), f.m2 = r.out();
  p.w_type = r.flag() ? DType::float64 : DType::float32;
}

inline void read(Reader& r, Problem& p, NormSqueeze& f) {
  f.x = r.x(p), f.norm = read_norm(r, p), f.z = r.out();
}

inline void read(Reader& r, Problem& p, NormScale& f) {
  f.x = r.x(p), f.residual = r.input(), f.y = r.output();
  f.norm = read_norm(r, p), f.s = r.in(), f.mask = r.bits(), p.post = r.post();
}

inline void read(Reader& r, Problem& p, NormScaleBackward& b) {
  b.dy = r.input(), b.x = r.x(p), b.dr = r.output();
  b.norm = read_norm(r, p), b.mask = r.bits(), b.sums = r.out();
}

inline void read(Reader& r, Problem& p, NormSqueezeBackward& b) {
  b.g = r.input(), b.x = r.x(p), b.dx = r.output();
  b.norm = read_norm(r, p), b.mask = r.bits();
  b.s = r.in(), b.d = r.in(), b.slope = r.in(), b.offset = r.in();
}

inline void read(Reader& r, Problem& p, NormForward& f) {
  f.x = r.x(p), f.residual = r.input(), f.y = r.output();
  f.training = r.flag();
  f.mean = r.vector(), f.var = r.vector(), f.means = static_cast<const double*>(r.in());
  f.momentum = r.number(), f.eps = r.number();
  f.weight = r.in(), f.bias = r.in(), f.pre = r.pre();
  f.w1 = r.w1(p), f.w2 = r.in(), f.b1 = r.in(), f.b2 = r.in();
  f.mask = r.bits(), f.moved = static_cast<double*>(r.out());
  const Reader::Rows numbers = r.rows();  // the norm, squeezed and s: (4 + 2 N, C)
  f.norm = numbers[0], f.squeezed = numbers[4], f.s = numbers[4 + p.images], f.a = r.out();
}

inline void read(Reader& r, Problem& p, NormBackward& b) {
  b.dy = r.input(), b.x = r.x(p), b.dr = r.output(), b.dx = r.output();
  b.mask = r.bits(), b.training = r.flag();
  const Reader::Rows numbers = r.rows();
  b.norm = numbers[0], b.squeezed = numbers[4], b.s = numbers[4 + p.images];
  b.a = r.in(), b.pre = r.pre();
  b.w1 = r.w1(p), b.w2 = r.in();
  b.dweight = r.out(), b.dbias = r.out(), b.d = r.out();
  b.dw1 = r.out(), b.dw2 = r.out(), b.db1 = r.out(), b.db2 = r.out();
}

}  // namespace se_kernels
