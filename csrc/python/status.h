// A status of the C++ interface, as Python's exception.
#pragma once

#include <new>

#include "api.h"

namespace se_kernels {

inline void raise(Status status) {
  if (status == Status::out_of_memory) throw std::bad_alloc();
}

}  // namespace se_kernels
