// The Python module se_kernels._cuda: integers and names in, exceptions out, the GIL released
// meanwhile. Built on the host for the tests too, where its tensors are the CPU's.
#include <map>
#include <mutex>

#include "calls.h"
#include "cuda/api.h"
#include "cuda/plan.h"
#include "cuda/survey.h"

namespace py = pybind11;

namespace {

using namespace se_kernels;

cuda::Gpu read_gpu(Reader& r) {
  const int device = int(r.size());
#ifdef SE_CUDA_ON_HOST
  return cuda::gpu_at(device);  // as the test has set it
#else
  static std::mutex mutex;
  static std::map<int, cuda::Gpu> gpus;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = gpus.find(device);
  return found != gpus.end() ? found->second : gpus[device] = cuda::gpu_at(device);
#endif
}

cuda::Call read_call(Reader& r) {
  const cuda::Gpu gpu = read_gpu(r);
  void *stream = r.out(), *workspace = r.out();
  return {gpu, stream, workspace};
}

void read(Reader& r, cuda::Backward& b) {
  b.x = r.input(), b.dy = r.input(), b.mask = r.bits(), b.dx = r.output(), b.dr = r.output();
  b.w1 = r.in(), b.w2 = r.in(), b.a = r.in(), b.s = r.in();
  b.de = r.out(), b.da = r.out(), b.h = r.out();
}

void read(Reader& r, cuda::WeightGradients& g) {
  g.de = r.in(), g.da = r.in(), g.h = r.in(), g.z = r.in();
  g.dw1 = r.out(), g.dw2 = r.out(), g.db1 = r.out(), g.db2 = r.out();
}

// The arguments of each are the GPU, stream and workspace, then those of the Problem as `of` reads
// it, then the tensors.
template <class Tensors, void (*function)(const Problem&, const Tensors&, const cuda::Call&),
          Problem (Reader::*of)()>
void run(const py::args& arguments) {
  Reader r(arguments);
  const cuda::Call call = read_call(r);
  const Problem p = (r.*of)();
  Tensors tensors{};
  read(r, tensors);
  r.end();
  const py::gil_scoped_release release;
  function(p, tensors, call);
}

// Of the GPU and the sizes alone.
template <class Result, Result (*function)(const Problem&, const cuda::Gpu&),
          Problem (Reader::*of)()>
Result ask(const py::args& arguments) {
  Reader r(arguments);
  const cuda::Gpu gpu = read_gpu(r);
  const Problem p = (r.*of)();
  r.end();
  return function(p, gpu);
}

std::int64_t norm_backward_workspace_bytes(const py::args& arguments) {
  Reader r(arguments);
  const cuda::Gpu gpu = read_gpu(r);
  const Problem p = r.sizes();
  const Pre pre = r.pre();
  r.end();
  return cuda::norm_backward_workspace_bytes(p, pre, gpu);
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
  m.def("forward", run<Forward, cuda::forward, &Reader::problem>);
  m.def("backward", run<cuda::Backward, cuda::backward, &Reader::problem>);
  m.def("weight_gradients", run<cuda::WeightGradients, cuda::weight_gradients, &Reader::sizes>);
  m.def("squeeze", run<SqueezeForward, cuda::squeeze, &Reader::phase>);
  m.def("scale", run<ScaleForward, cuda::scale, &Reader::phase>);
  m.def("scale_backward", run<ScaleBackward, cuda::scale_backward, &Reader::phase>);
  m.def("squeeze_backward", run<SqueezeBackward, cuda::squeeze_backward, &Reader::phase>);
  m.def("norm_moments", run<NormMoments, cuda::norm_moments, &Reader::phase>);
  m.def("norm_squeeze", run<NormSqueeze, cuda::norm_squeeze, &Reader::phase>);
  m.def("norm_scale", run<NormScale, cuda::norm_scale, &Reader::phase>);
  m.def("norm_scale_backward", run<NormScaleBackward, cuda::norm_scale_backward, &Reader::phase>);
  m.def("norm_squeeze_backward",
        run<NormSqueezeBackward, cuda::norm_squeeze_backward, &Reader::phase>);
  m.def("norm_forward", run<NormForward, cuda::norm_forward, &Reader::problem>);
  m.def("norm_backward", run<NormBackward, cuda::norm_backward, &Reader::problem>);
  m.def("workspace_bytes", ask<std::int64_t, cuda::workspace_bytes, &Reader::sizes>);
  m.def("explain", ask<std::string, cuda::explain, &Reader::sizes>);
  m.def("norm_workspace_bytes",
        ask<std::int64_t, cuda::norm_workspace_bytes, &Reader::phase_sizes>);
  m.def("norm_forward_workspace_bytes",
        ask<std::int64_t, cuda::norm_forward_workspace_bytes, &Reader::sizes>);
  m.def("norm_backward_workspace_bytes", norm_backward_workspace_bytes);
}
