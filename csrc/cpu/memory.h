// Scratch memory of a call, and the sizes that it follows from.
#pragma once

#include <cstdlib>
#include <memory>

#include "../api.h"

namespace se_kernels {

constexpr std::int64_t kLine = 64;

inline std::int64_t size_of(DType type) {
  return type == DType::float64 ? 8 : type == DType::float32 ? 4 : 2;
}

inline std::int64_t compute_size(const Problem& p) { return is_wide(p) ? 8 : 4; }

inline std::int64_t rounded_up(std::int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, Free>;

inline Memory allocate(std::int64_t bytes) {
  return Memory(std::aligned_alloc(kLine, bytes + kLine));
}

}  // namespace se_kernels
