// What Python hands over, as the C++ interface takes it: addresses, sizes, names.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "api.h"
#include "names.h"

namespace se_kernels {

using Pointer = std::uintptr_t;
using Size = std::int64_t;
using Name = const char*;

template <class Enum, std::size_t Count>
Enum named(const Name (&names)[Count], Name name, Name argument) {
  Enum found;
  if (find(names, name, found)) return found;
  throw std::invalid_argument(std::string(argument) + ": unknown name '" + name + "'");
}

inline Problem problem(Size images, Size channels, Size reduced, Size pixels, int x_type,
                       int w_type, bool nhwc, Name squeeze, Name act, double act_slope, Name gate,
                       Name post, int threads) {
  return {images,
          channels,
          reduced,
          pixels,
          DType(x_type),
          DType(w_type),
          nhwc ? Layout::nhwc : Layout::nchw,
          named<Squeeze>(kSqueezes, squeeze, "squeeze"),
          named<Act>(kActs, act, "act"),
          act_slope,
          named<Gate>(kGates, gate, "gate"),
          named<Post>(kPosts, post, "post"),
          threads};
}

// No FCs: compute_type is the type of s, z and their gradients.
inline Problem problem(Size images, Size channels, Size pixels, int x_type, int compute_type,
                       bool nhwc, Name squeeze, Name post, int threads) {
  return problem(images, channels, 0, pixels, x_type, compute_type, nhwc, squeeze, "identity", 0,
                 "sigmoid", post, threads);
}

// A tensor of images: its address and three strides, of image, channel and pixel.
inline Input input(Pointer data, Size image, Size channel, Size pixel) {
  return {reinterpret_cast<const void*>(data), image, channel, pixel};
}
inline Output output(Pointer data, Size image, Size channel, Size pixel) {
  return {reinterpret_cast<void*>(data), image, channel, pixel};
}
inline const void* in(Pointer p) { return reinterpret_cast<const void*>(p); }
inline void* out(Pointer p) { return reinterpret_cast<void*>(p); }
inline std::uint8_t* bits(Pointer p) { return reinterpret_cast<std::uint8_t*>(p); }

}  // namespace se_kernels
