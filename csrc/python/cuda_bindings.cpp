// The Python module se_kernels._cuda: integers and names in, exceptions out, the GIL released
// meanwhile. Built on the host for the tests too, where its tensors are the CPU's.
#include <pybind11/pybind11.h>

#include "cuda/plan.h"
#include "cuda/survey.h"
#include "cuda_arguments.h"

namespace py = pybind11;

namespace {

using namespace se_kernels;

Problem block(Size images, Size channels, Size reduced, Size pixels, int x_type, int w_type,
              bool nhwc, Name squeeze, Name act, double act_slope, Name gate, Name post) {
  return problem(images, channels, reduced, pixels, x_type, w_type, nhwc, squeeze, act, act_slope,
                 gate, post, 1);
}

Size workspace_bytes(int device, Size images, Size channels, Size reduced, Size pixels, int x_type,
                     int w_type, bool nhwc) {
  return cuda::workspace_bytes(block(images, channels, reduced, pixels, x_type, w_type, nhwc, "avg",
                                     "identity", 0, "sigmoid", "none"),
                               gpu_of(device));
}

void run_forward(int device, Pointer stream, Pointer workspace, Size images, Size channels,
                 Size reduced, Size pixels, int x_type, int w_type, bool nhwc, Name squeeze,
                 Name act, double act_slope, Name gate, Name post, Pointer x, Size x_i, Size x_c,
                 Size x_p, Pointer residual, Size r_i, Size r_c, Size r_p, Pointer y, Size y_i,
                 Size y_c, Size y_p, Pointer w1, Pointer w2, Pointer b1, Pointer b2, Pointer mask,
                 Pointer z, Pointer a, Pointer s) {
  const Problem p = block(images, channels, reduced, pixels, x_type, w_type, nhwc, squeeze, act,
                          act_slope, gate, post);
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
  const cuda::Call c = call(device, stream, workspace);
  const py::gil_scoped_release release;
  cuda::forward(p, f, c);
}

std::string explain(int device, Size images, Size channels, Size reduced, Size pixels, int x_type,
                    int w_type, bool nhwc) {
  return cuda::explain(block(images, channels, reduced, pixels, x_type, w_type, nhwc, "avg",
                             "identity", 0, "sigmoid", "none"),
                       gpu_of(device));
}

void run_backward(int device, Pointer stream, Pointer workspace, Size images, Size channels,
                  Size reduced, Size pixels, int x_type, int w_type, bool nhwc, Name squeeze,
                  Name act, double act_slope, Name gate, Pointer x, Size x_i, Size x_c, Size x_p,
                  Pointer dy, Size dy_i, Size dy_c, Size dy_p, Pointer dx, Size dx_i, Size dx_c,
                  Size dx_p, Pointer dr, Size dr_i, Size dr_c, Size dr_p, Pointer w1, Pointer w2,
                  Pointer mask, Pointer a, Pointer s, Pointer de, Pointer da, Pointer h) {
  const Problem p = block(images, channels, reduced, pixels, x_type, w_type, nhwc, squeeze, act,
                          act_slope, gate, "none");
  const cuda::Backward b{input(x, x_i, x_c, x_p),
                         input(dy, dy_i, dy_c, dy_p),
                         bits(mask),
                         in(w1),
                         in(w2),
                         in(a),
                         in(s),
                         output(dx, dx_i, dx_c, dx_p),
                         output(dr, dr_i, dr_c, dr_p),
                         out(de),
                         out(da),
                         out(h)};
  const cuda::Call c = call(device, stream, workspace);
  const py::gil_scoped_release release;
  cuda::backward(p, b, c);
}

void run_weight_gradients(int device, Pointer stream, Pointer workspace, Size images, Size channels,
                          Size reduced, Size pixels, int x_type, int w_type, bool nhwc, Pointer de,
                          Pointer da, Pointer h, Pointer z, Pointer dw1, Pointer dw2, Pointer db1,
                          Pointer db2) {
  const Problem p = block(images, channels, reduced, pixels, x_type, w_type, nhwc, "avg",
                          "identity", 0, "sigmoid", "none");
  const cuda::WeightGradients g{in(de),   in(da),   in(h),    in(z),
                                out(dw1), out(dw2), out(db1), out(db2)};
  const cuda::Call c = call(device, stream, workspace);
  const py::gil_scoped_release release;
  cuda::weight_gradients(p, g, c);
}

void run_squeeze(int device, Pointer stream, Pointer workspace, Size images, Size channels,
                 Size pixels, int x_type, int compute_type, bool nhwc, Name squeeze, Pointer x,
                 Size x_i, Size x_c, Size x_p, Pointer z) {
  const Problem p =
      problem(images, channels, pixels, x_type, compute_type, nhwc, squeeze, "none", 1);
  const SqueezeForward f{input(x, x_i, x_c, x_p), out(z)};
  const cuda::Call c = call(device, stream, workspace);
  const py::gil_scoped_release release;
  cuda::squeeze(p, f, c);
}

void run_scale(int device, Pointer stream, Pointer workspace, Size images, Size channels,
               Size pixels, int x_type, int compute_type, bool nhwc, Name post, Pointer x, Size x_i,
               Size x_c, Size x_p, Pointer residual, Size r_i, Size r_c, Size r_p, Pointer y,
               Size y_i, Size y_c, Size y_p, Pointer s, Pointer mask) {
  const Problem p = problem(images, channels, pixels, x_type, compute_type, nhwc, "avg", post, 1);
  const ScaleForward f{input(x, x_i, x_c, x_p), input(residual, r_i, r_c, r_p), in(s),
                       output(y, y_i, y_c, y_p), bits(mask)};
  const cuda::Call c = call(device, stream, workspace);
  const py::gil_scoped_release release;
  cuda::scale(p, f, c);
}

void run_scale_backward(int device, Pointer stream, Pointer workspace, Size images, Size channels,
                        Size pixels, int x_type, int compute_type, bool nhwc, Pointer x, Size x_i,
                        Size x_c, Size x_p, Pointer dy, Size dy_i, Size dy_c, Size dy_p, Pointer dx,
                        Size dx_i, Size dx_c, Size dx_p, Pointer dr, Size dr_i, Size dr_c,
                        Size dr_p, Pointer mask, Pointer s, Pointer ds) {
  const Problem p = problem(images, channels, pixels, x_type, compute_type, nhwc, "avg", "none", 1);
  const ScaleBackward b{input(x, x_i, x_c, x_p),
                        input(dy, dy_i, dy_c, dy_p),
                        in(s),
                        output(dx, dx_i, dx_c, dx_p),
                        output(dr, dr_i, dr_c, dr_p),
                        out(ds),
                        bits(mask)};
  const cuda::Call c = call(device, stream, workspace);
  const py::gil_scoped_release release;
  cuda::scale_backward(p, b, c);
}

void run_squeeze_backward(int device, Pointer stream, Pointer workspace, Size images, Size channels,
                          Size pixels, int x_type, int compute_type, bool nhwc, Name squeeze,
                          Pointer x, Size x_i, Size x_c, Size x_p, Pointer g, Size g_i, Size g_c,
                          Size g_p, Pointer dx, Size dx_i, Size dx_c, Size dx_p, Pointer s,
                          Pointer dz) {
  const Problem p =
      problem(images, channels, pixels, x_type, compute_type, nhwc, squeeze, "none", 1);
  const SqueezeBackward b{input(x, x_i, x_c, x_p), input(g, g_i, g_c, g_p), in(s), in(dz),
                          output(dx, dx_i, dx_c, dx_p)};
  const cuda::Call c = call(device, stream, workspace);
  const py::gil_scoped_release release;
  cuda::squeeze_backward(p, b, c);
}

void begin_survey() {
  if (!cuda::survey()) cuda::survey() = new std::vector<cuda::Surveyed>;
}

// (kernel, blocks, threads, bytes of shared memory, resident blocks of a multiprocessor) of each
// launch since.
py::list end_survey() {
  py::list found;
  if (!cuda::survey()) return found;
  for (const cuda::Surveyed& one : *cuda::survey())
    found.append(py::make_tuple(one.shape.kernel, one.shape.blocks, one.shape.threads,
                                one.shape.shared_bytes, one.blocks));
  delete cuda::survey();
  cuda::survey() = nullptr;
  return found;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of se_kernels; the arguments are addresses, called by backends/cuda";
#ifdef SE_CUDA_ON_HOST
  m.attr("DEVICE_TYPE") = "cpu";
#else
  m.attr("DEVICE_TYPE") = "cuda";
#endif
  m.attr("float32") = int(DType::float32);
  m.attr("float64") = int(DType::float64);
  m.attr("bfloat16") = int(DType::bfloat16);
  m.attr("float16") = int(DType::float16);
  m.def("begin_survey", begin_survey);
  m.def("end_survey", end_survey);
  m.def("workspace_bytes", workspace_bytes);
  m.def("forward", run_forward);
  m.def("explain", explain);
  m.def("backward", run_backward);
  m.def("weight_gradients", run_weight_gradients);
  m.def("squeeze", run_squeeze);
  m.def("scale", run_scale);
  m.def("scale_backward", run_scale_backward);
  m.def("squeeze_backward", run_squeeze_backward);
  se_kernels::add_norm(m);
}
