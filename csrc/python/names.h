// The variants' names, in the order of the enumerations in api.h.
#pragma once

#include <cstddef>
#include <cstring>

#include "api.h"

namespace se_kernels {

constexpr const char* kSqueezes[] = {"avg", "max", "avgmax"};
constexpr const char* kActs[] = {"relu",      "silu",       "gelu",    "gelu_tanh",
                                 "hardswish", "leaky_relu", "identity"};
constexpr const char* kGates[] = {"sigmoid", "hardsigmoid", "tanh", "relu"};
constexpr const char* kPosts[] = {"none", "relu"};
constexpr const char* kPres[] = {"identity", "relu", "silu", "hardswish"};

// The enumerator of a name; false where there is none.
template <class Enum, std::size_t Count>
bool find(const char* const (&names)[Count], const char* name, Enum& found) {
  for (std::size_t i = 0; i < Count; ++i)
    if (std::strcmp(name, names[i]) == 0) return found = Enum(i), true;
  return false;
}

}  // namespace se_kernels
