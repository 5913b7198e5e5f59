#include "fast_path.h"

#include <cstring>
#include <initializer_list>

#include "api.h"
#include "dlpack_exchange.h"
#include "names.h"

namespace se_kernels {
namespace {

PyObject *tensor_type, *parameter_type, *empty_like, *get_num_threads, *is_neg;

bool is_tensor(PyObject* object) {
  const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return type == tensor_type || type == parameter_type;
}

// A negation put off, as of a conjugate's imaginary part; DLPack does not tell it.
bool is_negated(PyObject* tensor) {
  PyObject* answer = PyObject_CallMethodNoArgs(tensor, is_neg);
  const bool no = answer == Py_False;
  Py_XDECREF(answer);
  return !no;
}

// An argument: a tensor that the kernels can read, or None.
struct Argument {
  dlpack::Tensor t{};
  DType type{};
  bool present = false;

  bool read(PyObject* object) {
    if (object == Py_None) return true;
    if (!is_tensor(object) || dlpack::exchange->to_tensor(object, &t) != 0) return false;
    present = true;
    return t.device_type == dlpack::cpu && dlpack::find_type(t.dtype, type) && t.data &&
           !is_negated(object);
  }
  void* data() const { return dlpack::address(t); }

  bool lies(const std::int64_t (&strides)[4]) const {
    for (int i = 0; i < 4; ++i)
      if (t.shape[i] != 1 && t.strides[i] != strides[i]) return false;
    return true;
  }
  // (rows, columns) or (rows, columns, 1, 1), row-major
  bool is_matrix(std::int64_t rows, std::int64_t columns) const {
    const bool flat =
        t.dimensions == 2 || (t.dimensions == 4 && t.shape[2] == 1 && t.shape[3] == 1);
    return present && flat && t.shape[0] == rows && t.shape[1] == columns &&
           (columns == 1 || t.strides[1] == 1) && (rows == 1 || t.strides[0] == columns);
  }
  bool is_bias(std::int64_t size, DType dtype) const {
    return !present || (t.dimensions == 1 && t.shape[0] == size && type == dtype &&
                        (size == 1 || t.strides[0] == 1));
  }
};

const char* text(PyObject* s) { return PyUnicode_Check(s) ? PyUnicode_AsUTF8(s) : ""; }

// The block's tensors and variant, where all can be read as they lie.
struct Block {
  Argument x, w1, w2, b1, b2, residual;
  Problem p{};
  bool rows = false;

  // v: x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post
  bool read(PyObject* const* v) {
    if (!x.read(v[0]) || !w1.read(v[1]) || !w2.read(v[2]) || !b1.read(v[3]) || !b2.read(v[4]) ||
        !residual.read(v[5]))
      return false;
    if (!find(kSqueezes, text(v[6]), p.squeeze) || !find(kActs, text(v[7]), p.act) ||
        !PyFloat_Check(v[8]) || !find(kGates, text(v[9]), p.gate) ||
        !find(kPosts, text(v[10]), p.post))
      return false;
    if (!x.present || x.t.dimensions != 4 || !w1.present || w1.t.dimensions < 2) return false;
    const std::int64_t N = x.t.shape[0], C = x.t.shape[1], P = x.t.shape[2] * x.t.shape[3],
                       R = w1.t.shape[0];
    p.images = N, p.channels = C, p.reduced = R, p.pixels = P;
    p.x_type = x.type, p.w_type = w1.type;
    p.act_slope = PyFloat_AS_DOUBLE(v[8]);
    rows = lies(x, true);
    if (N * C * P * R == 0 || !(rows || lies(x, false))) return false;
    p.layout = rows && P > 1 ? Layout::nchw : Layout::nhwc;
    if (residual.present &&
        (residual.t.dimensions != 4 || residual.type != x.type ||
         std::memcmp(residual.t.shape, x.t.shape, 4 * sizeof(std::int64_t)) != 0 ||
         !lies(residual, rows)))
      return false;
    if (!w1.is_matrix(R, C) || !w2.is_matrix(C, R) || w2.type != w1.type ||
        !b1.is_bias(R, w1.type) || !b2.is_bias(C, w1.type))
      return false;
    p.threads = thread_count();
    return p.threads > 0;
  }

  // run(where x, residual and y lie) fills y. y, or null: with an exception where memory ran out,
  // else for the long way.
  template <class Run>
  PyObject* call(PyObject* x_object, Run run) const {
    PyObject* result = PyObject_CallOneArg(empty_like, x_object);
    if (!result) return nullptr;
    Argument y;
    if (!y.read(result) || !lies(y, rows)) return Py_DECREF(result), nullptr;
    const std::int64_t image = p.channels * p.pixels,
                       channel = p.layout == Layout::nchw ? p.pixels : 1,
                       pixel = rows ? 1 : p.channels;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status =
        run(Input{x.data(), image, channel, pixel}, Input{residual.data(), image, channel, pixel},
            Output{y.data(), image, channel, pixel});
    Py_END_ALLOW_THREADS;
    if (status == Status::ok) return result;
    Py_DECREF(result);
    return PyErr_NoMemory();
  }

 private:
  bool lies(const Argument& t, bool by_rows) const {
    const std::int64_t C = p.channels, P = p.pixels, W = x.t.shape[3];
    const std::int64_t nchw[4] = {C * P, P, W, 1}, nhwc[4] = {C * P, 1, W * C, C};
    return by_rows ? t.lies(nchw) : t.lies(nhwc);
  }
};

PyObject* run(PyObject* const* v) {
  Block block;
  if (!block.read(v)) return nullptr;
  return block.call(v[0], [&](const Input& x, const Input& residual, const Output& y) {
    return forward(block.p, {x, residual, block.w1.data(), block.w2.data(), block.b1.data(),
                             block.b2.data(), y, nullptr, nullptr, nullptr});
  });
}

// v goes on with bn_weight, bn_bias, mean, var, eps, pre.
PyObject* run_norm(PyObject* const* v) {
  Block block;
  Argument weight, bias, mean, var;
  NormInference f{};
  if (!block.read(v) || block.p.squeeze != Squeeze::avg || !weight.read(v[11]) ||
      !bias.read(v[12]) || !mean.read(v[13]) || !var.read(v[14]) || !PyFloat_Check(v[15]) ||
      !find(kPres, text(v[16]), f.pre))
    return nullptr;
  const bool wide = block.p.x_type == DType::float64 || block.p.w_type == DType::float64;
  const DType sums = wide ? DType::float64 : DType::float32;
  if (!mean.present || !var.present) return nullptr;
  for (const Argument* t : {&weight, &bias, &mean, &var})
    if (!t->is_bias(block.p.channels, sums)) return nullptr;
  f.mean = mean.data(), f.var = var.data(), f.weight = weight.data(), f.bias = bias.data();
  f.eps = PyFloat_AS_DOUBLE(v[15]);
  f.w1 = block.w1.data(), f.w2 = block.w2.data(), f.b1 = block.b1.data(), f.b2 = block.b2.data();
  return block.call(v[0], [&](const Input& x, const Input& residual, const Output& y) {
    f.x = x, f.residual = residual, f.y = y;
    return norm_inference(block.p, f);
  });
}

}  // namespace

void fast_path_setup(const pybind11::module_& torch) {
  const auto kept = [](pybind11::object object) { return object.release().ptr(); };
  tensor_type = kept(torch.attr("Tensor"));
  parameter_type = kept(torch.attr("nn").attr("Parameter"));
  empty_like = kept(torch.attr("empty_like"));
  get_num_threads = kept(torch.attr("get_num_threads"));
  is_neg = PyUnicode_InternFromString("is_neg");
}

int thread_count() {
  PyObject* threads = PyObject_CallNoArgs(get_num_threads);
  if (!threads) return 0;
  const long count = PyLong_AsLong(threads);
  Py_DECREF(threads);
  return int(count);
}

namespace {

PyObject* y_or_none(PyObject* y) {
  if (y) return y;
  if (PyErr_Occurred()) {
    if (PyErr_ExceptionMatches(PyExc_MemoryError)) return nullptr;
    PyErr_Clear();
  }
  Py_RETURN_NONE;
}

}  // namespace

PyObject* fast_path_inference(PyObject*, PyObject* const* v, Py_ssize_t count) {
  if (count != 11) Py_RETURN_NONE;
  return y_or_none(run(v));
}

PyObject* fast_path_norm_inference(PyObject*, PyObject* const* v, Py_ssize_t count) {
  if (count != 17) Py_RETURN_NONE;
  return y_or_none(run_norm(v));
}

PyObject* fast_path_are_plain(PyObject*, PyObject* const* v, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (v[i] == Py_None || PyUnicode_Check(v[i]) || PyFloat_Check(v[i]) || PyBool_Check(v[i]) ||
        PyList_Check(v[i]))
      continue;
    dlpack::Tensor t{};
    if (!is_tensor(v[i]) || dlpack::exchange->to_tensor(v[i], &t) != 0 ||
        t.device_type != dlpack::cpu || !t.data || is_negated(v[i])) {
      PyErr_Clear();
      Py_RETURN_FALSE;
    }
  }
  Py_RETURN_TRUE;
}

}  // namespace se_kernels
