#include "norm_bindings.h"

#include "arguments.h"
#include "status.h"

namespace py = pybind11;

namespace {

using namespace se_kernels;

Norm norm(Pointer mean, Pointer scale, Pointer bias, Name pre) {
  return {in(mean), in(scale), in(bias), named<Pre>(kPres, pre, "pre")};
}

void run_moments(Size images, Size channels, Size pixels, int x_type, int compute_type, bool nhwc,
                 Name squeeze, Name post, int threads, Pointer x, Size x_i, Size x_c, Size x_p,
                 Pointer mean, Pointer m2) {
  const Problem p =
      problem(images, channels, pixels, x_type, compute_type, nhwc, squeeze, post, threads);
  const NormMoments f{input(x, x_i, x_c, x_p), out(mean), out(m2)};
  const py::gil_scoped_release release;
  raise(norm_moments(p, f));
}

void run_squeeze(Size images, Size channels, Size pixels, int x_type, int compute_type, bool nhwc,
                 Name squeeze, Name post, int threads, Pointer x, Size x_i, Size x_c, Size x_p,
                 Pointer mean, Pointer scale, Pointer bias, Name pre, Pointer z) {
  const Problem p =
      problem(images, channels, pixels, x_type, compute_type, nhwc, squeeze, post, threads);
  const NormSqueeze f{input(x, x_i, x_c, x_p), norm(mean, scale, bias, pre), out(z)};
  const py::gil_scoped_release release;
  raise(norm_squeeze(p, f));
}

void run_scale(Size images, Size channels, Size pixels, int x_type, int compute_type, bool nhwc,
               Name squeeze, Name post, int threads, Pointer x, Size x_i, Size x_c, Size x_p,
               Pointer residual, Size r_i, Size r_c, Size r_p, Pointer y, Size y_i, Size y_c,
               Size y_p, Pointer mean, Pointer scale, Pointer bias, Name pre, Pointer s,
               Pointer mask) {
  const Problem p =
      problem(images, channels, pixels, x_type, compute_type, nhwc, squeeze, post, threads);
  const NormScale f{input(x, x_i, x_c, x_p),      input(residual, r_i, r_c, r_p),
                    norm(mean, scale, bias, pre), in(s),
                    output(y, y_i, y_c, y_p),     bits(mask)};
  const py::gil_scoped_release release;
  raise(norm_scale(p, f));
}

void run_scale_backward(Size images, Size channels, Size pixels, int x_type, int compute_type,
                        bool nhwc, Name squeeze, Name post, int threads, Pointer dy, Size dy_i,
                        Size dy_c, Size dy_p, Pointer x, Size x_i, Size x_c, Size x_p, Pointer dr,
                        Size dr_i, Size dr_c, Size dr_p, Pointer mean, Pointer scale, Pointer bias,
                        Name pre, Pointer mask, Pointer sums) {
  const Problem p =
      problem(images, channels, pixels, x_type, compute_type, nhwc, squeeze, post, threads);
  const NormScaleBackward b{input(dy, dy_i, dy_c, dy_p),  input(x, x_i, x_c, x_p),      bits(mask),
                            norm(mean, scale, bias, pre), output(dr, dr_i, dr_c, dr_p), out(sums)};
  const py::gil_scoped_release release;
  raise(norm_scale_backward(p, b));
}

void run_squeeze_backward(Size images, Size channels, Size pixels, int x_type, int compute_type,
                          bool nhwc, Name squeeze, Name post, int threads, Pointer g, Size g_i,
                          Size g_c, Size g_p, Pointer x, Size x_i, Size x_c, Size x_p, Pointer dx,
                          Size dx_i, Size dx_c, Size dx_p, Pointer mean, Pointer scale,
                          Pointer bias, Name pre, Pointer mask, Pointer s, Pointer d, Pointer slope,
                          Pointer offset) {
  const Problem p =
      problem(images, channels, pixels, x_type, compute_type, nhwc, squeeze, post, threads);
  const NormSqueezeBackward b{input(g, g_i, g_c, g_p),
                              input(x, x_i, x_c, x_p),
                              bits(mask),
                              norm(mean, scale, bias, pre),
                              in(s),
                              in(d),
                              in(slope),
                              in(offset),
                              output(dx, dx_i, dx_c, dx_p)};
  const py::gil_scoped_release release;
  raise(norm_squeeze_backward(p, b));
}

void run_inference(Size images, Size channels, Size reduced, Size pixels, int x_type, int w_type,
                   bool nhwc, Name squeeze, Name act, double act_slope, Name gate, Name post,
                   int threads, Pointer x, Size x_i, Size x_c, Size x_p, Pointer residual, Size r_i,
                   Size r_c, Size r_p, Pointer y, Size y_i, Size y_c, Size y_p, Pointer mean,
                   Pointer var, Pointer weight, Pointer bias, double eps, Name pre, Pointer w1,
                   Pointer w2, Pointer b1, Pointer b2) {
  const Problem p = problem(images, channels, reduced, pixels, x_type, w_type, nhwc, squeeze, act,
                            act_slope, gate, post, threads);
  const NormInference f{input(x, x_i, x_c, x_p),
                        input(residual, r_i, r_c, r_p),
                        in(mean),
                        in(var),
                        in(weight),
                        in(bias),
                        eps,
                        named<Pre>(kPres, pre, "pre"),
                        in(w1),
                        in(w2),
                        in(b1),
                        in(b2),
                        output(y, y_i, y_c, y_p)};
  const py::gil_scoped_release release;
  raise(norm_inference(p, f));
}

void run_forward(Size images, Size channels, Size reduced, Size pixels, int x_type, int w_type,
                 bool nhwc, Name squeeze, Name act, double act_slope, Name gate, Name post,
                 int threads, Pointer x, Size x_i, Size x_c, Size x_p, Pointer residual, Size r_i,
                 Size r_c, Size r_p, Pointer y, Size y_i, Size y_c, Size y_p, bool training,
                 Pointer mean, int mean_type, Pointer var, int var_type, Pointer means,
                 double momentum, double eps, Pointer weight, Pointer bias, Name pre, Pointer w1,
                 Pointer w2, Pointer b1, Pointer b2, Pointer mask, Pointer moved, Pointer norm,
                 Pointer squeezed, Pointer s, Pointer a) {
  const Problem p = problem(images, channels, reduced, pixels, x_type, w_type, nhwc, squeeze, act,
                            act_slope, gate, post, threads);
  NormForward f{};
  f.x = input(x, x_i, x_c, x_p), f.residual = input(residual, r_i, r_c, r_p);
  f.training = training;
  f.mean = {in(mean), DType(mean_type)}, f.var = {in(var), DType(var_type)};
  f.means = static_cast<const double*>(in(means));
  f.momentum = momentum, f.eps = eps;
  f.weight = in(weight), f.bias = in(bias);
  f.pre = named<Pre>(kPres, pre, "pre");
  f.w1 = in(w1), f.w2 = in(w2), f.b1 = in(b1), f.b2 = in(b2);
  f.y = output(y, y_i, y_c, y_p);
  f.mask = bits(mask), f.moved = static_cast<double*>(out(moved)), f.norm = out(norm);
  f.squeezed = out(squeezed), f.a = out(a), f.s = out(s);
  const py::gil_scoped_release release;
  raise(norm_forward(p, f));
}

void run_backward(Size images, Size channels, Size reduced, Size pixels, int x_type, int w_type,
                  bool nhwc, Name squeeze, Name act, double act_slope, Name gate, Name post,
                  int threads, Pointer dy, Size dy_i, Size dy_c, Size dy_p, Pointer x, Size x_i,
                  Size x_c, Size x_p, Pointer dr, Size dr_i, Size dr_c, Size dr_p, Pointer dx,
                  Size dx_i, Size dx_c, Size dx_p, Pointer mask, bool training, Pointer norm,
                  Pointer squeezed, Pointer s, Pointer a, Name pre, Pointer w1, Pointer w2,
                  Pointer dweight, Pointer dbias, Pointer d, Pointer dw1, Pointer dw2, Pointer db1,
                  Pointer db2) {
  const Problem p = problem(images, channels, reduced, pixels, x_type, w_type, nhwc, squeeze, act,
                            act_slope, gate, post, threads);
  NormBackward b{};
  b.dy = input(dy, dy_i, dy_c, dy_p), b.x = input(x, x_i, x_c, x_p);
  b.mask = bits(mask);
  b.training = training, b.norm = in(norm);
  b.pre = named<Pre>(kPres, pre, "pre");
  b.w1 = in(w1), b.w2 = in(w2);
  b.squeezed = in(squeezed), b.a = in(a), b.s = in(s);
  b.dr = output(dr, dr_i, dr_c, dr_p), b.dx = output(dx, dx_i, dx_c, dx_p);
  b.dweight = out(dweight), b.dbias = out(dbias), b.d = out(d);
  b.dw1 = out(dw1), b.dw2 = out(dw2), b.db1 = out(db1), b.db2 = out(db2);
  const py::gil_scoped_release release;
  raise(norm_backward(p, b));
}

}  // namespace

void define_norm(py::module_& m) {
  m.def("norm_moments", run_moments);
  m.def("norm_squeeze", run_squeeze);
  m.def("norm_scale", run_scale);
  m.def("norm_scale_backward", run_scale_backward);
  m.def("norm_squeeze_backward", run_squeeze_backward);
  m.def("norm_inference", run_inference);
  m.def("norm_forward", run_forward);
  m.def("norm_backward", run_backward);
}
