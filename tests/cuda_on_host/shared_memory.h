// A block's shared memory: exactly so many bytes, and what is past them is noticed.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace se_kernels::cuda::host {

class SharedMemory {
 public:
  explicit SharedMemory(int bytes);
  unsigned char* data() const { return data_.get(); }
  std::size_t bytes() const { return bytes_; }
  bool holds(const void* p, std::size_t bytes) const;
  void poison();        // all NaN, and negative integers
  bool intact() const;  // nothing was written past the end; under ASan it would not come to that

 private:
  std::size_t bytes_;
  std::unique_ptr<unsigned char, decltype(&std::free)> data_;
};

constexpr unsigned char kPoison = 0xff;

}  // namespace se_kernels::cuda::host
