// The calls of se_kernels._cuda with a batch norm before the block.
#include "cuda_arguments.h"

namespace py = pybind11;

namespace se_kernels {
namespace {

Problem block(Size images, Size channels, Size pixels, int x_type, int compute_type, bool nhwc,
              Name post) {
  return problem(images, channels, pixels, x_type, compute_type, nhwc, "avg", post, 1);
}

Norm norm(Pointer mean, Pointer scale, Pointer bias, Name pre) {
  return {in(mean), in(scale), in(bias), named<Pre>(kPres, pre, "pre")};
}

Size workspace_bytes(int device, Size images, Size channels, Size pixels, int x_type,
                     int compute_type, bool nhwc) {
  return cuda::norm_workspace_bytes(
      block(images, channels, pixels, x_type, compute_type, nhwc, "none"), gpu_of(device));
}

void run_moments(int device, Pointer stream, Pointer workspace, Size images, Size channels,
                 Size pixels, int x_type, int compute_type, bool nhwc, Pointer x, Size x_i,
                 Size x_c, Size x_p, Pointer mean, Pointer m2) {
  const Problem p = block(images, channels, pixels, x_type, compute_type, nhwc, "none");
  const NormMoments f{input(x, x_i, x_c, x_p), out(mean), out(m2)};
  const cuda::Call c = call(device, stream, workspace);
  const py::gil_scoped_release release;
  cuda::norm_moments(p, f, c);
}

void run_squeeze(int device, Pointer stream, Pointer workspace, Size images, Size channels,
                 Size pixels, int x_type, int compute_type, bool nhwc, Pointer mean, Pointer scale,
                 Pointer bias, Name pre, Pointer x, Size x_i, Size x_c, Size x_p, Pointer z) {
  const Problem p = block(images, channels, pixels, x_type, compute_type, nhwc, "none");
  const NormSqueeze f{input(x, x_i, x_c, x_p), norm(mean, scale, bias, pre), out(z)};
  const cuda::Call c = call(device, stream, workspace);
  const py::gil_scoped_release release;
  cuda::norm_squeeze(p, f, c);
}

void run_scale(int device, Pointer stream, Pointer workspace, Size images, Size channels,
               Size pixels, int x_type, int compute_type, bool nhwc, Pointer mean, Pointer factor,
               Pointer bias, Name pre, Name post, Pointer x, Size x_i, Size x_c, Size x_p,
               Pointer residual, Size r_i, Size r_c, Size r_p, Pointer y, Size y_i, Size y_c,
               Size y_p, Pointer s, Pointer mask) {
  const Problem p = block(images, channels, pixels, x_type, compute_type, nhwc, post);
  const NormScale f{input(x, x_i, x_c, x_p),       input(residual, r_i, r_c, r_p),
                    norm(mean, factor, bias, pre), in(s),
                    output(y, y_i, y_c, y_p),      bits(mask)};
  const cuda::Call c = call(device, stream, workspace);
  const py::gil_scoped_release release;
  cuda::norm_scale(p, f, c);
}

void run_scale_backward(int device, Pointer stream, Pointer workspace, Size images, Size channels,
                        Size pixels, int x_type, int compute_type, bool nhwc, Pointer mean,
                        Pointer factor, Pointer bias, Name pre, Pointer dy, Size dy_i, Size dy_c,
                        Size dy_p, Pointer x, Size x_i, Size x_c, Size x_p, Pointer mask,
                        Pointer dr, Size dr_i, Size dr_c, Size dr_p, Pointer sums) {
  const Problem p = block(images, channels, pixels, x_type, compute_type, nhwc, "none");
  const NormScaleBackward b{input(dy, dy_i, dy_c, dy_p),   input(x, x_i, x_c, x_p),      bits(mask),
                            norm(mean, factor, bias, pre), output(dr, dr_i, dr_c, dr_p), out(sums)};
  const cuda::Call c = call(device, stream, workspace);
  const py::gil_scoped_release release;
  cuda::norm_scale_backward(p, b, c);
}

void run_squeeze_backward(int device, Pointer stream, Pointer workspace, Size images, Size channels,
                          Size pixels, int x_type, int compute_type, bool nhwc, Pointer mean,
                          Pointer factor, Pointer bias, Name pre, Pointer g, Size g_i, Size g_c,
                          Size g_p, Pointer x, Size x_i, Size x_c, Size x_p, Pointer mask,
                          Pointer s, Pointer d, Pointer slope, Pointer offset, Pointer dx,
                          Size dx_i, Size dx_c, Size dx_p) {
  const Problem p = block(images, channels, pixels, x_type, compute_type, nhwc, "none");
  const NormSqueezeBackward b{input(g, g_i, g_c, g_p),
                              input(x, x_i, x_c, x_p),
                              bits(mask),
                              norm(mean, factor, bias, pre),
                              in(s),
                              in(d),
                              in(slope),
                              in(offset),
                              output(dx, dx_i, dx_c, dx_p)};
  const cuda::Call c = call(device, stream, workspace);
  const py::gil_scoped_release release;
  cuda::norm_squeeze_backward(p, b, c);
}

}  // namespace

void add_norm(py::module_& m) {
  m.def("norm_workspace_bytes", workspace_bytes);
  m.def("norm_moments", run_moments);
  m.def("norm_squeeze", run_squeeze);
  m.def("norm_scale", run_scale);
  m.def("norm_scale_backward", run_scale_backward);
  m.def("norm_squeeze_backward", run_squeeze_backward);
}

}  // namespace se_kernels
