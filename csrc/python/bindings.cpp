// The Python module se_kernels._C: integers and names in, exceptions out, the GIL released
// meanwhile.
#include "direct.h"
#include "guard.h"
#include "reader.h"

namespace py = pybind11;

namespace {

using namespace se_kernels;

void run_forward(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.problem();
  Forward f{};
  f.x = r.input(), f.residual = r.input(), f.y = r.output();
  f.w1 = r.in(), f.w2 = r.in(), f.b1 = r.in(), f.b2 = r.in();
  f.mask = r.bits(), f.z = r.out(), f.a = r.out(), f.s = r.out();
  r.call(forward, p, f);
}

void run_backward(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.problem();
  Backward b{};
  b.x = r.input(), b.dy = r.input(), b.mask = r.bits(), b.dx = r.output(), b.dr = r.output();
  b.w1 = r.in(), b.w2 = r.in(), b.z = r.in(), b.a = r.in(), b.s = r.in();
  b.dw1 = r.out(), b.dw2 = r.out(), b.db1 = r.out(), b.db2 = r.out();
  r.call(backward, p, b);
}

void run_squeeze(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.phase();
  SqueezeForward f{};
  f.x = r.input(), f.z = r.out();
  r.call(squeeze, p, f);
}

void run_scale(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.phase();
  ScaleForward f{};
  f.x = r.input(), f.residual = r.input(), f.y = r.output(), f.s = r.in(), f.mask = r.bits();
  r.call(scale, p, f);
}

void run_scale_backward(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.phase();
  ScaleBackward b{};
  b.x = r.input(), b.dy = r.input(), b.mask = r.bits(), b.dx = r.output(), b.dr = r.output();
  b.s = r.in(), b.ds = r.out();
  r.call(scale_backward, p, b);
}

void run_squeeze_backward(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.phase();
  SqueezeBackward b{};
  b.x = r.input(), b.g = r.input(), b.dx = r.output(), b.s = r.in(), b.dz = r.in();
  r.call(squeeze_backward, p, b);
}

Norm read_norm(Reader& r) {
  Norm of{};
  of.mean = r.in(), of.scale = r.in(), of.bias = r.in(), of.pre = r.pre();
  return of;
}

Vector read_vector(Reader& r) {
  Vector v{};
  v.data = r.in(), v.type = r.type();
  return v;
}

void run_norm_moments(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.phase();
  NormMoments f{};
  f.x = r.input(), f.mean = r.out(), f.m2 = r.out();
  r.call(norm_moments, p, f);
}

void run_norm_squeeze(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.phase();
  NormSqueeze f{};
  f.x = r.input(), f.norm = read_norm(r), f.z = r.out();
  r.call(norm_squeeze, p, f);
}

void run_norm_scale(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.phase();
  NormScale f{};
  f.x = r.input(), f.residual = r.input(), f.y = r.output();
  f.norm = read_norm(r), f.s = r.in(), f.mask = r.bits();
  r.call(norm_scale, p, f);
}

void run_norm_scale_backward(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.phase();
  NormScaleBackward b{};
  b.dy = r.input(), b.x = r.input(), b.dr = r.output();
  b.norm = read_norm(r), b.mask = r.bits(), b.sums = r.out();
  r.call(norm_scale_backward, p, b);
}

void run_norm_squeeze_backward(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.phase();
  NormSqueezeBackward b{};
  b.g = r.input(), b.x = r.input(), b.dx = r.output();
  b.norm = read_norm(r), b.mask = r.bits();
  b.s = r.in(), b.d = r.in(), b.slope = r.in(), b.offset = r.in();
  r.call(norm_squeeze_backward, p, b);
}

void run_norm_inference(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.problem();
  NormInference f{};
  f.x = r.input(), f.residual = r.input(), f.y = r.output();
  f.mean = r.in(), f.var = r.in(), f.weight = r.in(), f.bias = r.in();
  f.eps = r.number(), f.pre = r.pre();
  f.w1 = r.in(), f.w2 = r.in(), f.b1 = r.in(), f.b2 = r.in();
  r.call(norm_inference, p, f);
}

void run_norm_forward(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.problem();
  NormForward f{};
  f.x = r.input(), f.residual = r.input(), f.y = r.output();
  f.training = r.flag();
  f.mean = read_vector(r), f.var = read_vector(r), f.means = static_cast<const double*>(r.in());
  f.momentum = r.number(), f.eps = r.number();
  f.weight = r.in(), f.bias = r.in(), f.pre = r.pre();
  f.w1 = r.in(), f.w2 = r.in(), f.b1 = r.in(), f.b2 = r.in();
  f.mask = r.bits(), f.moved = static_cast<double*>(r.out()), f.norm = r.out();
  f.squeezed = r.out(), f.s = r.out(), f.a = r.out();
  r.call(norm_forward, p, f);
}

void run_norm_backward(const py::args& arguments) {
  Reader r(arguments);
  const Problem p = r.problem();
  NormBackward b{};
  b.dy = r.input(), b.x = r.input(), b.dr = r.output(), b.dx = r.output();
  b.mask = r.bits(), b.training = r.flag();
  b.norm = r.in(), b.squeezed = r.in(), b.s = r.in(), b.a = r.in(), b.pre = r.pre();
  b.w1 = r.in(), b.w2 = r.in();
  b.dweight = r.out(), b.dbias = r.out(), b.d = r.out();
  b.dw1 = r.out(), b.dw2 = r.out(), b.db1 = r.out(), b.db2 = r.out();
  r.call(norm_backward, p, b);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of se_kernels; the arguments are addresses, called by backends/cpu.py";
  m.attr("float32") = int(DType::float32);
  m.attr("float64") = int(DType::float64);
  m.attr("bfloat16") = int(DType::bfloat16);
  m.attr("float16") = int(DType::float16);
  m.def("forward", run_forward);
  m.def("backward", run_backward);
  m.def("squeeze", run_squeeze);
  m.def("scale", run_scale);
  m.def("scale_backward", run_scale_backward);
  m.def("squeeze_backward", run_squeeze_backward);
  m.def("norm_moments", run_norm_moments);
  m.def("norm_squeeze", run_norm_squeeze);
  m.def("norm_scale", run_norm_scale);
  m.def("norm_scale_backward", run_norm_scale_backward);
  m.def("norm_squeeze_backward", run_norm_squeeze_backward);
  m.def("norm_inference", run_norm_inference);
  m.def("norm_forward", run_norm_forward);
  m.def("norm_backward", run_norm_backward);
  m.def("instruction_set", instruction_set);
  static PyMethodDef direct[] = {
      {"direct_setup", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(direct_setup)),
       METH_FASTCALL, nullptr},
      {"direct_are_plain", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(direct_are_plain)),
       METH_FASTCALL, nullptr},
      {"direct_inference", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(direct_inference)),
       METH_FASTCALL, nullptr},
      {"direct_norm_inference",
       reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(direct_norm_inference)), METH_FASTCALL,
       nullptr},
      {"guard_setup", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(guard_setup)),
       METH_FASTCALL, nullptr},
      {"guard_is_valid", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(guard_is_valid)),
       METH_FASTCALL, nullptr},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(m.ptr(), direct) != 0) throw py::error_already_set();
}
