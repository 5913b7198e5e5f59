#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace se_kernels::cuda::host {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kStackBytes = 256 << 10;
#else
constexpr std::size_t kStackBytes = 64 << 10;
#endif
// Stacks start at different offsets of a page: their hot ends then share no cache lines' places.
constexpr std::size_t kColours = 16, kColourBytes = 256;

std::size_t guard_bytes() {
  static const auto page = std::size_t(sysconf(_SC_PAGESIZE));
  return page;
}

Fiber *to = nullptr, *from = nullptr;  // of the switch under way

}  // namespace

Fiber::Fiber(void (*body)()) : first_(std::make_unique<ucontext_t>()), body_(body) {
  void* mapping = mmap(nullptr, guard_bytes() + kStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<unsigned char*>(mapping);
  mprotect(mapping_, guard_bytes(), PROT_NONE);
  static std::size_t made = 0;
  bottom_ = mapping_ + guard_bytes();
  bytes_ = kStackBytes - made++ % kColours * kColourBytes;
  getcontext(first_.get());
  first_->uc_stack.ss_sp = mapping_ + guard_bytes();
  first_->uc_stack.ss_size = bytes_;
  first_->uc_link = nullptr;
  makecontext(first_.get(), begin, 0);
}

Fiber::~Fiber() {
  if (!mapping_) return;
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(mapping_ + guard_bytes(), kStackBytes);  // left in mid-run
#endif
  munmap(mapping_, guard_bytes() + kStackBytes);
}

bool Fiber::holds(const void* p) const {
  return std::size_t(static_cast<const unsigned char*>(p) - mapping_) < guard_bytes() + kStackBytes;
}

void Fiber::begin() {
  Fiber& me = *to;
  me.arrive();
  me.first_.reset();
  me.body_();
}

// The compiler's own setjmp and longjmp, of two buffers. Unlike the library's they are not calls:
// one that does not return would have the processor mispredict the returns that follow.
// Unsanitized: AddressSanitizer would take the jump for the end of this stack.
__attribute__((no_sanitize_address)) void Fiber::switch_to(Fiber& other) {
  leave(other);
  if (__builtin_setjmp(state_) == 0) {
    if (other.first_) setcontext(other.first_.get());
    __builtin_longjmp(other.state_, 1);
  }
  arrive();
}

void Fiber::leave(Fiber& other) {
  from = this;
  to = &other;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fake_stack_, other.bottom_, other.bytes_);
#endif
}

void Fiber::arrive() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack_, &from->bottom_, &from->bytes_);
#endif
}

}  // namespace se_kernels::cuda::host
