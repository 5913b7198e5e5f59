// The arguments of a call, read one after the other: one function type for pybind11 to compile.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "api.h"
#include "dlpack_exchange.h"
#include "names.h"

namespace se_kernels {

class Reader {
 public:
  explicit Reader(const pybind11::args& arguments)
      : arguments_(arguments.ptr()), count_(PyTuple_GET_SIZE(arguments_)) {}

  std::int64_t integer() { return checked(PyLong_AsLongLong(next())); }
  double number() { return checked(PyFloat_AsDouble(next())); }
  bool flag() { return checked(PyObject_IsTrue(next())) != 0; }
  template <class Enum, std::size_t Count>
  Enum name(const char* const (&names)[Count], const char* argument) {
    const char* text = checked(PyUnicode_AsUTF8(next()));
    Enum found;
    if (find(names, text, found)) return found;
    throw std::invalid_argument(std::string(argument) + ": unknown name '" + text + "'");
  }
  Pre pre() { return name<Pre>(kPres, "pre"); }
  Squeeze squeeze() { return name<Squeeze>(kSqueezes, "squeeze"); }
  Post post() { return name<Post>(kPosts, "post"); }

  // nhwc, squeeze, act, act_slope, gate, post; the sizes and types come from the tensors.
  Problem problem() {
    Problem p = phase();
    p.squeeze = squeeze(), p.act = name<Act>(kActs, "act"), p.act_slope = number();
    p.gate = name<Gate>(kGates, "gate"), p.post = post();
    return p;
  }
  // nhwc
  Problem phase() {
    Problem p{};
    p.layout = flag() ? Layout::nhwc : Layout::nchw;
    p.act = Act::identity, p.threads = 1;
    return p;
  }

  // A tensor's address; null for None, and for a tensor without elements.
  const void* in() { return address(tensor()); }
  void* out() { return address(tensor()); }
  std::uint8_t* bits() { return static_cast<std::uint8_t*>(out()); }
  Vector vector() {
    const dlpack::Tensor t = tensor();
    return {address(t), t.shape ? type_of(t) : DType::float32};
  }
  // (N, C, H, W), with the strides of a contiguous tensor if it is one
  Input input() { return input_of(tensor()); }
  Output output() {
    const Input t = input();
    return {const_cast<void*>(t.data), t.image_stride, t.channel_stride, t.pixel_stride};
  }

  // x (N, C, H, W), from which p has N, C, P and a type.
  Input x(Problem& p) {
    const dlpack::Tensor t = present();
    p.images = t.shape[0], p.channels = t.shape[1], p.pixels = t.shape[2] * t.shape[3];
    p.x_type = type_of(t);
    return input_of(t);
  }
  // w1 (R, C), from which p has R and a type.
  const void* w1(Problem& p) {
    const dlpack::Tensor t = present();
    p.reduced = t.shape[0], p.w_type = type_of(t);
    return address(t);
  }
  // A tensor of a phase in the compute type, from which p has it.
  void* sums(Problem& p) {
    const dlpack::Tensor t = present();
    p.w_type = type_of(t);
    return address(t);
  }
  // The rows of a (K, C) tensor.
  class Rows {
   public:
    explicit Rows(const dlpack::Tensor& t)
        : type(type_of(t)),
          data_(static_cast<char*>(address(t))),
          bytes_(t.shape[1] * t.dtype.bits / 8) {}
    void* operator[](std::int64_t row) const { return data_ ? data_ + row * bytes_ : nullptr; }

    const DType type;

   private:
    char* data_;
    std::int64_t bytes_;
  };
  Rows rows() { return Rows(present()); }

  // Throws if arguments are left.
  void end() const {
    if (at_ != count_) throw wrong_count();
  }

 private:
  PyObject* next() {
    if (at_ == count_) throw wrong_count();
    return PyTuple_GET_ITEM(arguments_, at_++);
  }
  // All null for None.
  dlpack::Tensor tensor() {
    PyObject* object = next();
    dlpack::Tensor t{};
    if (object != Py_None && dlpack::exchange->to_tensor(object, &t) != 0)
      throw pybind11::error_already_set();
    return t;
  }
  dlpack::Tensor present() {
    const dlpack::Tensor t = tensor();
    if (!t.shape) throw pybind11::type_error("expected a tensor, got None");
    return t;
  }
  static DType type_of(const dlpack::Tensor& t) {
    DType type;
    if (!dlpack::find_type(t.dtype, type)) throw std::invalid_argument("unknown dtype");
    return type;
  }
  static Input input_of(const dlpack::Tensor& t) {
    if (!address(t)) return {};
    const std::int64_t *size = t.shape, *stride = t.strides, pixels = size[2] * size[3];
    if (is_contiguous(t)) return {address(t), size[1] * pixels, pixels, 1};
    const std::int64_t pixel = size[3] > 1 ? stride[3] : size[2] > 1 ? stride[2] : 1;
    return {address(t), stride[0], stride[1], pixel};
  }
  static bool is_contiguous(const dlpack::Tensor& t) {
    std::int64_t expected = 1;
    for (int i = t.dimensions - 1; i >= 0; expected *= t.shape[i--])
      if (t.shape[i] != 1 && t.strides[i] != expected) return false;
    return true;
  }
  pybind11::type_error wrong_count() const {
    return pybind11::type_error("expected " + std::to_string(at_) +
                                (at_ == count_ ? " arguments or more" : " arguments") + ", got " +
                                std::to_string(count_));
  }
  template <class T>
  static T checked(T value) {
    if (PyErr_Occurred()) throw pybind11::error_already_set();
    return value;
  }

  PyObject* arguments_;
  Py_ssize_t count_, at_ = 0;
};

}  // namespace se_kernels
