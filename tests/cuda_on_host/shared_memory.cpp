#include "shared_memory.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

namespace se_kernels::cuda::host {
namespace {

constexpr std::size_t kAlignment = 128;
#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kMargin = 0;  // the allocator's redzone follows
#else
constexpr std::size_t kMargin = 256;
#endif

unsigned char* allocate(std::size_t bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, kAlignment, std::max<std::size_t>(bytes + kMargin, 1)) != 0)
    throw std::bad_alloc();
  return static_cast<unsigned char*>(data);
}

}  // namespace

SharedMemory::SharedMemory(int bytes)
    : bytes_(std::size_t(bytes)), data_(allocate(bytes_), &std::free) {}

bool SharedMemory::holds(const void* p, std::size_t bytes) const {
  const auto at = reinterpret_cast<std::uintptr_t>(p),
             start = reinterpret_cast<std::uintptr_t>(data());
  return at >= start && at - start <= bytes_ && bytes <= bytes_ - (at - start);
}

void SharedMemory::poison() { std::memset(data(), kPoison, bytes_ + kMargin); }

bool SharedMemory::intact() const {
  const unsigned char* end = data() + bytes_;
  return std::all_of(end, end + kMargin, [](unsigned char c) { return c == kPoison; });
}

}  // namespace se_kernels::cuda::host
