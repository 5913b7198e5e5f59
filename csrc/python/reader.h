// The arguments of a call, read one after the other: one function type for pybind11 to compile.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "api.h"
#include "names.h"

namespace se_kernels {

class Reader {
 public:
  explicit Reader(const pybind11::args& arguments)
      : arguments_(arguments.ptr()), count_(PyTuple_GET_SIZE(arguments_)) {}

  std::int64_t size() { return checked(PyLong_AsLongLong(next())); }
  double number() { return checked(PyFloat_AsDouble(next())); }
  bool flag() { return checked(PyObject_IsTrue(next())) != 0; }
  DType type() { return DType(size()); }
  template <class Enum, std::size_t Count>
  Enum name(const char* const (&names)[Count], const char* argument) {
    const char* text = checked(PyUnicode_AsUTF8(next()));
    Enum found;
    if (find(names, text, found)) return found;
    throw std::invalid_argument(std::string(argument) + ": unknown name '" + text + "'");
  }

  // Tensors arrive as addresses, 0 for none; images with their strides of image, channel, pixel.
  const void* in() { return address(); }
  void* out() { return address(); }
  std::uint8_t* bits() { return static_cast<std::uint8_t*>(address()); }
  Input input() {
    const void* data = in();
    const std::int64_t image = size(), channel = size(), pixel = size();
    return {data, image, channel, pixel};
  }
  Output output() {
    const Input t = input();
    return {const_cast<void*>(t.data), t.image_stride, t.channel_stride, t.pixel_stride};
  }

  // N, C, R, P, the types of x and the weights, whether nhwc; the variant is left as it is here.
  Problem sizes() { return read_sizes(true); }
  // The same without R, for a phase: the second type is that of the sums.
  Problem phase_sizes() { return read_sizes(false); }
  Problem problem() {
    Problem p = sizes();
    p.squeeze = name<Squeeze>(kSqueezes, "squeeze"), p.act = name<Act>(kActs, "act");
    p.act_slope = number(), p.gate = name<Gate>(kGates, "gate");
    p.post = name<Post>(kPosts, "post"), p.threads = int(size());
    return p;
  }
  Problem phase() {
    Problem p = phase_sizes();
    p.squeeze = name<Squeeze>(kSqueezes, "squeeze"), p.post = name<Post>(kPosts, "post");
    p.threads = int(size());
    return p;
  }
  Pre pre() { return name<Pre>(kPres, "pre"); }

  // Throws if arguments are left.
  void end() const {
    if (at_ != count_) throw wrong_count();
  }

 private:
  Problem read_sizes(bool fcs) {
    Problem p{};
    p.images = size(), p.channels = size(), p.reduced = fcs ? size() : 0, p.pixels = size();
    p.x_type = type(), p.w_type = type();
    p.layout = flag() ? Layout::nhwc : Layout::nchw;
    p.act = Act::identity, p.threads = 1;
    return p;
  }
  PyObject* next() {
    if (at_ == count_) throw wrong_count();
    return PyTuple_GET_ITEM(arguments_, at_++);
  }
  void* address() {
    return reinterpret_cast<void*>(std::uintptr_t(checked(PyLong_AsUnsignedLongLong(next()))));
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
