// What a launch is, in words.
#pragma once

#include <string>
#include <type_traits>

#include "../api.h"

namespace se_kernels::cuda {

struct Shape {
  std::string kernel;
  int blocks, threads, shared_bytes;
};

inline std::string describe(const Shape& shape) {
  return "kernel " + shape.kernel + " with " + std::to_string(shape.blocks) + " blocks of " +
         std::to_string(shape.threads) + " threads, " + std::to_string(shape.shared_bytes) +
         " bytes of shared memory each";
}

// body(constant) with the layout as a constant.
template <class Body>
void with_layout(Layout layout, const Body& body) {
  if (layout == Layout::nchw)
    body(std::integral_constant<Layout, Layout::nchw>{});
  else
    body(std::integral_constant<Layout, Layout::nhwc>{});
}

}  // namespace se_kernels::cuda
