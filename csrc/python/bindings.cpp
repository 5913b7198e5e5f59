// The Python module se_kernels._C: tensors and names in, exceptions out, the GIL released
// meanwhile.
#include <new>

#include "calls.h"
#include "fast_path.h"
#include "guard.h"

namespace py = pybind11;

namespace {

using namespace se_kernels;

void read(Reader& r, Problem& p, Backward& b) {
  b.x = r.x(p), b.dy = r.input(), b.mask = r.bits(), b.dx = r.output(), b.dr = r.output();
  b.w1 = r.w1(p), b.w2 = r.in(), b.z = r.in(), b.a = r.in(), b.s = r.in();
  b.dw1 = r.out(), b.dw2 = r.out(), b.db1 = r.out(), b.db2 = r.out();
}

void read(Reader& r, Problem& p, NormInference& f) {
  f.x = r.x(p), f.residual = r.input(), f.y = r.output();
  f.mean = r.in(), f.var = r.in(), f.weight = r.in(), f.bias = r.in();
  f.eps = r.number(), f.pre = r.pre();
  f.w1 = r.w1(p), f.w2 = r.in(), f.b1 = r.in(), f.b2 = r.in();
}

// The arguments of each are those of the Problem as `of` reads it, then the tensors.
template <class Tensors, Status (*function)(const Problem&, const Tensors&),
          Problem (Reader::*of)()>
void run(const py::args& arguments) {
  Reader r(arguments);
  Problem p = (r.*of)();
  Tensors tensors{};
  read(r, p, tensors);
  r.end();
  p.threads = thread_count();
  if (p.threads == 0) throw py::error_already_set();
  const py::gil_scoped_release release;
  if (function(p, tensors) == Status::out_of_memory) throw std::bad_alloc();
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of se_kernels, called by backends/cpu";
  const py::module_ torch = py::module_::import("torch");
  dlpack::load(torch.attr("Tensor"));
  fast_path_setup(torch);
  m.def("forward", run<Forward, forward, &Reader::problem>);
  m.def("backward", run<Backward, backward, &Reader::problem>);
  m.def("squeeze", run<SqueezeForward, squeeze, &Reader::phase>);
  m.def("scale", run<ScaleForward, scale, &Reader::phase>);
  m.def("scale_backward", run<ScaleBackward, scale_backward, &Reader::phase>);
  m.def("squeeze_backward", run<SqueezeBackward, squeeze_backward, &Reader::phase>);
  m.def("norm_moments", run<NormMoments, norm_moments, &Reader::phase>);
  m.def("norm_squeeze", run<NormSqueeze, norm_squeeze, &Reader::phase>);
  m.def("norm_scale", run<NormScale, norm_scale, &Reader::phase>);
  m.def("norm_scale_backward", run<NormScaleBackward, norm_scale_backward, &Reader::phase>);
  m.def("norm_squeeze_backward", run<NormSqueezeBackward, norm_squeeze_backward, &Reader::phase>);
  m.def("norm_inference", run<NormInference, norm_inference, &Reader::problem>);
  m.def("norm_forward", run<NormForward, norm_forward, &Reader::problem>);
  m.def("norm_backward", run<NormBackward, norm_backward, &Reader::problem>);
  m.def("instruction_set", instruction_set);
  static PyMethodDef fast_path[] = {
      {"fast_path_are_plain",
       reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(fast_path_are_plain)), METH_FASTCALL,
       nullptr},
      {"fast_path_inference",
       reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(fast_path_inference)), METH_FASTCALL,
       nullptr},
      {"fast_path_norm_inference",
       reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(fast_path_norm_inference)),
       METH_FASTCALL, nullptr},
      {"guard_setup", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(guard_setup)),
       METH_FASTCALL, nullptr},
      {"guard_is_valid", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(guard_is_valid)),
       METH_FASTCALL, nullptr},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(m.ptr(), fast_path) != 0) throw py::error_already_set();
}
