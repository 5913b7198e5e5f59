// What a launch tells of itself: to whoever judges it, and none in the plain build.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "cuda/launch.h"

namespace se_kernels::cuda::host {

struct Block;
struct Thread;

// Of an atomic on a counter.
enum class Order { relaxed, acquire, release, acquire_release };

// `pc`: where in the kernel's code, the address after the call.
class Observer {
 public:
  virtual ~Observer() = default;

  virtual void on_launch_begin(const Shape&) {}
  virtual void on_launch_end() {}  // an error is no end
  virtual void on_block_begin(const Block&) {}
  virtual void on_block_end(const Block&) {}

  // A call, from pc; and the return from the innermost.
  virtual void on_call(const Thread&, const void* /*pc*/) {}
  virtual void on_return(const Thread&) {}

  // A plain access of global or shared memory.
  virtual void on_access(const Thread&, const void* /*address*/, unsigned /*bytes*/,
                         bool /*writes*/, const void* /*pc*/) {}
  virtual void on_vector(const Thread&) {}  // the next access is of a 16-byte primitive
  virtual void on_use(const Thread&) {}     // of what was loaded
  virtual void on_counter(const Thread&, const std::uint32_t*, bool /*writes*/, Order,
                          const void* /*pc*/) {}

  virtual void on_shuffle(const Thread&) {}  // the last of its warp
  virtual void on_barrier_arrive(const Thread&, const void* /*pc*/) {}
  virtual void on_barrier_complete(const Block&) {}
};

std::vector<Observer*>& observers();

template <class... Parameters, class... Arguments>
void observe(void (Observer::*event)(Parameters...), Arguments&&... arguments) {
  for (Observer* observer : observers()) (observer->*event)(arguments...);
}

}  // namespace se_kernels::cuda::host
