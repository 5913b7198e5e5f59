// The Python module se_kernels._C: integers and names in, exceptions out, the GIL released
// meanwhile.
#include <pybind11/pybind11.h>

#include "arguments.h"
#include "direct.h"
#include "guard.h"
#include "norm_bindings.h"
#include "status.h"

namespace py = pybind11;

namespace {

using namespace se_kernels;

// A tensor of images arrives as its address and three strides: image, channel, pixel.
void run_forward(Size images, Size channels, Size reduced, Size pixels, int x_type, int w_type,
                 bool nhwc, Name squeeze, Name act, double act_slope, Name gate, Name post,
                 int threads, Pointer x, Size x_i, Size x_c, Size x_p, Pointer residual, Size r_i,
                 Size r_c, Size r_p, Pointer y, Size y_i, Size y_c, Size y_p, Pointer w1,
                 Pointer w2, Pointer b1, Pointer b2, Pointer mask, Pointer z, Pointer a,
                 Pointer s) {
  const Problem p = problem(images, channels, reduced, pixels, x_type, w_type, nhwc, squeeze, act,
                            act_slope, gate, post, threads);
  const Forward f{input(x, x_i, x_c, x_p),
                  input(residual, r_i, r_c, r_p),
                  in(w1),
                  in(w2),
                  in(b1),
                  in(b2),
                  output(y, y_i, y_c, y_p),
                  out(z),
                  out(a),
                  out(s),
                  bits(mask)};
  const py::gil_scoped_release release;
  raise(forward(p, f));
}

void run_backward(Size images, Size channels, Size reduced, Size pixels, int x_type, int w_type,
                  bool nhwc, Name squeeze, Name act, double act_slope, Name gate, Name post,
                  int threads, Pointer x, Size x_i, Size x_c, Size x_p, Pointer dy, Size dy_i,
                  Size dy_c, Size dy_p, Pointer mask, Pointer dx, Size dx_i, Size dx_c, Size dx_p,
                  Pointer dr, Size dr_i, Size dr_c, Size dr_p, Pointer w1, Pointer w2, Pointer z,
                  Pointer a, Pointer s, Pointer dw1, Pointer dw2, Pointer db1, Pointer db2) {
  const Problem p = problem(images, channels, reduced, pixels, x_type, w_type, nhwc, squeeze, act,
                            act_slope, gate, post, threads);
  const Backward b{input(x, x_i, x_c, x_p),
                   input(dy, dy_i, dy_c, dy_p),
                   in(w1),
                   in(w2),
                   in(z),
                   in(a),
                   in(s),
                   output(dx, dx_i, dx_c, dx_p),
                   output(dr, dr_i, dr_c, dr_p),
                   out(dw1),
                   out(dw2),
                   out(db1),
                   out(db2),
                   bits(mask)};
  const py::gil_scoped_release release;
  raise(backward(p, b));
}

void run_squeeze(Size images, Size channels, Size pixels, int x_type, int compute_type, bool nhwc,
                 Name squeeze_kind, Name post, int threads, Pointer x, Size x_i, Size x_c, Size x_p,
                 Pointer z) {
  const Problem p =
      problem(images, channels, pixels, x_type, compute_type, nhwc, squeeze_kind, post, threads);
  const SqueezeForward f{input(x, x_i, x_c, x_p), out(z)};
  const py::gil_scoped_release release;
  raise(squeeze(p, f));
}

void run_scale(Size images, Size channels, Size pixels, int x_type, int compute_type, bool nhwc,
               Name squeeze_kind, Name post, int threads, Pointer x, Size x_i, Size x_c, Size x_p,
               Pointer residual, Size r_i, Size r_c, Size r_p, Pointer y, Size y_i, Size y_c,
               Size y_p, Pointer s, Pointer mask) {
  const Problem p =
      problem(images, channels, pixels, x_type, compute_type, nhwc, squeeze_kind, post, threads);
  const ScaleForward f{input(x, x_i, x_c, x_p), input(residual, r_i, r_c, r_p), in(s),
                       output(y, y_i, y_c, y_p), bits(mask)};
  const py::gil_scoped_release release;
  raise(scale(p, f));
}

void run_scale_backward(Size images, Size channels, Size pixels, int x_type, int compute_type,
                        bool nhwc, Name squeeze_kind, Name post, int threads, Pointer x, Size x_i,
                        Size x_c, Size x_p, Pointer dy, Size dy_i, Size dy_c, Size dy_p,
                        Pointer mask, Pointer dx, Size dx_i, Size dx_c, Size dx_p, Pointer dr,
                        Size dr_i, Size dr_c, Size dr_p, Pointer s, Pointer ds) {
  const Problem p =
      problem(images, channels, pixels, x_type, compute_type, nhwc, squeeze_kind, post, threads);
  const ScaleBackward b{input(x, x_i, x_c, x_p),
                        input(dy, dy_i, dy_c, dy_p),
                        in(s),
                        output(dx, dx_i, dx_c, dx_p),
                        output(dr, dr_i, dr_c, dr_p),
                        out(ds),
                        bits(mask)};
  const py::gil_scoped_release release;
  raise(scale_backward(p, b));
}

void run_squeeze_backward(Size images, Size channels, Size pixels, int x_type, int compute_type,
                          bool nhwc, Name squeeze_kind, Name post, int threads, Pointer x, Size x_i,
                          Size x_c, Size x_p, Pointer g, Size g_i, Size g_c, Size g_p, Pointer dx,
                          Size dx_i, Size dx_c, Size dx_p, Pointer s, Pointer dz) {
  const Problem p =
      problem(images, channels, pixels, x_type, compute_type, nhwc, squeeze_kind, post, threads);
  const SqueezeBackward b{input(x, x_i, x_c, x_p), input(g, g_i, g_c, g_p), in(s), in(dz),
                          output(dx, dx_i, dx_c, dx_p)};
  const py::gil_scoped_release release;
  raise(squeeze_backward(p, b));
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
  define_norm(m);
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
