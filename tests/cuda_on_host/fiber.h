// A stack of its own that a host thread runs on, and leaves in the middle of anything.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <memory>

namespace se_kernels::cuda::host {

class Fiber {
 public:
  Fiber() = default;               // whoever switches to the first of the others
  explicit Fiber(void (*body)());  // body begins at the first switch, and never returns
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Called on this fiber; returns when somebody switches back to it.
  void switch_to(Fiber& other);
  bool holds(const void* p) const;  // on its stack

 private:
  static void begin();
  void leave(Fiber& other);
  void arrive();

  void* state_[5];                     // of __builtin_setjmp
  std::unique_ptr<ucontext_t> first_;  // until the first switch to it
  void (*body_)() = nullptr;
  unsigned char* mapping_ = nullptr;
  // for AddressSanitizer
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace se_kernels::cuda::host
