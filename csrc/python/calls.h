// The tensors of each call, in the order of its arguments: the same for both native libraries.
#pragma once

#include "reader.h"

namespace se_kernels {

inline Norm read_norm(Reader& r) {
  Norm of{};
  of.mean = r.in(), of.scale = r.in(), of.bias = r.in(), of.pre = r.pre();
  return of;
}

inline Vector read_vector(Reader& r) {
  Vector v{};
  v.data = r.in(), v.type = r.type();
  return v;
}

inline void read(Reader& r, Forward& f) {
  f.x = r.input(), f.residual = r.input(), f.y = r.output();
  f.w1 = r.in(), f.w2 = r.in(), f.b1 = r.in(), f.b2 = r.in();
  f.mask = r.bits(), f.z = r.out(), f.a = r.out(), f.s = r.out();
}

inline void read(Reader& r, SqueezeForward& f) { f.x = r.input(), f.z = r.out(); }

inline void read(Reader& r, ScaleForward& f) {
  f.x = r.input(), f.residual = r.input(), f.y = r.output(), f.s = r.in(), f.mask = r.bits();
}

inline void read(Reader& r, ScaleBackward& b) {
  b.x = r.input(), b.dy = r.input(), b.mask = r.bits(), b.dx = r.output(), b.dr = r.output();
  b.s = r.in(), b.ds = r.out();
}

inline void read(Reader& r, SqueezeBackward& b) {
  b.x = r.input(), b.g = r.input(), b.dx = r.output(), b.s = r.in(), b.dz = r.in();
}

inline void read(Reader& r, NormMoments& f) { f.x = r.input(), f.mean = r.out(), f.m2 = r.out(); }

inline void read(Reader& r, NormSqueeze& f) {
  f.x = r.input(), f.norm = read_norm(r), f.z = r.out();
}

inline void read(Reader& r, NormScale& f) {
  f.x = r.input(), f.residual = r.input(), f.y = r.output();
  f.norm = read_norm(r), f.s = r.in(), f.mask = r.bits();
}

inline void read(Reader& r, NormScaleBackward& b) {
  b.dy = r.input(), b.x = r.input(), b.dr = r.output();
  b.norm = read_norm(r), b.mask = r.bits(), b.sums = r.out();
}

inline void read(Reader& r, NormSqueezeBackward& b) {
  b.g = r.input(), b.x = r.input(), b.dx = r.output();
  b.norm = read_norm(r), b.mask = r.bits();
  b.s = r.in(), b.d = r.in(), b.slope = r.in(), b.offset = r.in();
}

inline void read(Reader& r, NormForward& f) {
  f.x = r.input(), f.residual = r.input(), f.y = r.output();
  f.training = r.flag();
  f.mean = read_vector(r), f.var = read_vector(r), f.means = static_cast<const double*>(r.in());
  f.momentum = r.number(), f.eps = r.number();
  f.weight = r.in(), f.bias = r.in(), f.pre = r.pre();
  f.w1 = r.in(), f.w2 = r.in(), f.b1 = r.in(), f.b2 = r.in();
  f.mask = r.bits(), f.moved = static_cast<double*>(r.out()), f.norm = r.out();
  f.squeezed = r.out(), f.s = r.out(), f.a = r.out();
}

inline void read(Reader& r, NormBackward& b) {
  b.dy = r.input(), b.x = r.input(), b.dr = r.output(), b.dx = r.output();
  b.mask = r.bits(), b.training = r.flag();
  b.norm = r.in(), b.squeezed = r.in(), b.s = r.in(), b.a = r.in(), b.pre = r.pre();
  b.w1 = r.in(), b.w2 = r.in();
  b.dweight = r.out(), b.dbias = r.out(), b.d = r.out();
  b.dw1 = r.out(), b.dw2 = r.out(), b.db1 = r.out(), b.db2 = r.out();
}

}  // namespace se_kernels
