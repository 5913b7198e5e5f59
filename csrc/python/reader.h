// The arguments of a call, read one after the other: one function type for pybind11 to compile.
#pragma once

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "status.h"

namespace se_kernels {

class Reader {
 public:
  explicit Reader(const pybind11::args& arguments)
      : arguments_(arguments.ptr()), count_(PyTuple_GET_SIZE(arguments_)) {}

  Size size() { return checked(PyLong_AsLongLong(next())); }
  double number() { return checked(PyFloat_AsDouble(next())); }
  bool flag() { return checked(PyObject_IsTrue(next())) != 0; }
  Name name() { return checked(PyUnicode_AsUTF8(next())); }
  DType type() { return DType(size()); }

  const void* in() { return address(); }
  void* out() { return address(); }
  std::uint8_t* bits() { return static_cast<std::uint8_t*>(address()); }
  Input input() {
    const void* data = in();
    const Size image = size(), channel = size(), pixel = size();
    return {data, image, channel, pixel};
  }
  Output output() {
    const Input t = input();
    return {const_cast<void*>(t.data), t.image_stride, t.channel_stride, t.pixel_stride};
  }

  // As places.py writes them.
  Problem problem() {
    Problem p{};
    p.images = size(), p.channels = size(), p.reduced = size(), p.pixels = size();
    p.x_type = type(), p.w_type = type();
    p.layout = flag() ? Layout::nhwc : Layout::nchw;
    p.squeeze = named<Squeeze>(kSqueezes, name(), "squeeze");
    p.act = named<Act>(kActs, name(), "act");
    p.act_slope = number();
    p.gate = named<Gate>(kGates, name(), "gate");
    p.post = named<Post>(kPosts, name(), "post");
    p.threads = int(size());
    return p;
  }
  Problem phase() {
    const Size images = size(), channels = size(), pixels = size();
    const int x_type = int(size()), compute_type = int(size());
    const bool nhwc = flag();
    const Name squeeze = name(), post = name();
    return se_kernels::problem(images, channels, pixels, x_type, compute_type, nhwc, squeeze, post,
                               int(size()));
  }
  Pre pre() { return named<Pre>(kPres, name(), "pre"); }

  // function, with the GIL released, once all arguments have been read.
  template <class Tensors>
  void call(Status (*function)(const Problem&, const Tensors&), const Problem& p,
            const Tensors& tensors) {
    if (at_ != count_) throw wrong_count();
    const pybind11::gil_scoped_release release;
    raise(function(p, tensors));
  }

 private:
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
