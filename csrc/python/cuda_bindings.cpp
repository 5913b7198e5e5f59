// The Python module se_kernels._cuda: tensors and names in, exceptions out, the GIL released
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
  const int device = int(r.integer());
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
  void* stream = reinterpret_cast<void*>(std::intptr_t(r.integer()));
  void* workspace = r.out();
  return {gpu, stream, workspace};
}

void read(Reader& r, Problem& p, cuda::Backward& b) {
  b.x = r.x(p), b.dy = r.input(), b.mask = r.bits(), b.dx = r.output(), b.dr = r.output();
  b.w1 = r.w1(p), b.w2 = r.in(), b.a = r.in(), b.s = r.in();
  b.de = r.out(), b.da = r.out(), b.h = r.out();
}

void read(Reader& r, Problem& p, cuda::WeightGradients& g) {
  r.x(p), r.w1(p);
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
  Problem p = (r.*of)();
  Tensors tensors{};
  read(r, p, tensors);
  r.end();
  const py::gil_scoped_release release;
  function(p, tensors, call);
}

// What a block needs: the GPU, nhwc, x, w1.
template <class Result, Result (*function)(const Problem&, const cuda::Gpu&)>
Result of_block(const py::args& arguments) {
  Reader r(arguments);
  const cuda::Gpu gpu = read_gpu(r);
  Problem p = r.phase();
  r.x(p), r.w1(p), r.end();
  return function(p, gpu);
}

// What a phase needs: the GPU, nhwc, x, whether the compute type is double.
template <std::int64_t (*function)(const Problem&, const cuda::Gpu&)>
std::int64_t of_phase(const py::args& arguments) {
  Reader r(arguments);
  const cuda::Gpu gpu = read_gpu(r);
  Problem p = r.phase();
  r.x(p), p.w_type = r.flag() ? DType::float64 : DType::float32, r.end();
  return function(p, gpu);
}

std::int64_t norm_backward_workspace_bytes(const py::args& arguments) {
  Reader r(arguments);
  const cuda::Gpu gpu = read_gpu(r);
  Problem p = r.phase();
  r.x(p), r.w1(p);
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
  m.doc() = "CUDA kernels of se_kernels, called by backends/cuda";
  dlpack::load(py::module_::import("torch").attr("Tensor"));
#ifdef SE_CUDA_ON_HOST
  m.attr("DEVICE_TYPE") = "cpu";
#else
  m.attr("DEVICE_TYPE") = "cuda";
#endif
  m.def("begin_survey", begin_survey);
  m.def("end_survey", end_survey);
  m.def("forward", run<Forward, cuda::forward, &Reader::problem>);
  m.def("backward", run<cuda::Backward, cuda::backward, &Reader::problem>);
  m.def("weight_gradients", run<cuda::WeightGradients, cuda::weight_gradients, &Reader::phase>);
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
  m.def("workspace_bytes", of_block<std::int64_t, cuda::workspace_bytes>);
  m.def("explain", of_block<std::string, cuda::explain>);
  m.def("phase_workspace_bytes", of_phase<cuda::workspace_bytes>);
  m.def("norm_workspace_bytes", of_phase<cuda::norm_workspace_bytes>);
  m.def("norm_forward_workspace_bytes", of_block<std::int64_t, cuda::norm_forward_workspace_bytes>);
  m.def("norm_backward_workspace_bytes", norm_backward_workspace_bytes);
}
