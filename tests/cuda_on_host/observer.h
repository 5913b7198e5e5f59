// What a launch tells of itself: to whoever judges it, and none in the plain build.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "cuda/launch.h"

namespace se_kernels::cuda::host {

struct Block;
struct Cluster;
struct Copy;
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
  virtual void on_thread_end(const Thread&) {}

  // A call, from pc; and the return from the innermost.
  virtual void on_call(const Thread&, const void* /*pc*/) {}
  virtual void on_return(const Thread&) {}

  // A plain access of global or shared memory.
  virtual void on_access(const Thread&, const void* /*address*/, unsigned /*bytes*/,
                         bool /*writes*/, const void* /*pc*/) {}
  virtual void on_vector(const Thread&) {}  // the next access is of a 16-byte primitive
  virtual void on_use(const Thread&) {}     // of what was loaded
  virtual void on_remote_load(const Thread&, const Block& /*of*/, const void* /*address*/,
                              const void* /*pc*/) {}
  virtual void on_counter(const Thread&, const std::uint32_t*, bool /*writes*/, Order,
                          const void* /*pc*/) {}

  virtual void on_shuffle(const Thread&) {}  // the last of its warp
  virtual void on_barrier_arrive(const Thread&, const void* /*pc*/) {}
  virtual void on_barrier_complete(const Block&) {}
  virtual void on_cluster_arrive(const Thread&, const void* /*pc*/) {}
  virtual void on_cluster_complete(const Cluster&) {}
  virtual void on_cluster_wait(const Thread&, const void* /*pc*/) {}

  virtual void on_arrivals_start(const Thread&, const std::uint64_t*, const void* /*pc*/) {}
  virtual void on_expect_bytes(const Thread&, const std::uint64_t*, const void* /*pc*/) {}
  virtual void on_bulk_load(const Thread&, const Copy&, const void* /*pc*/) {}
  virtual void on_phase_complete(const Block&, const std::uint64_t*) {}
  virtual void on_wait_arrivals(const Thread&, const std::uint64_t*, const void* /*pc*/) {}
  virtual void on_proxy_fence(const Thread&, const void* /*pc*/) {}
};

std::vector<Observer*>& observers();

template <class... Parameters, class... Arguments>
void observe(void (Observer::*event)(Parameters...), Arguments&&... arguments) {
  for (Observer* observer : observers()) (observer->*event)(arguments...);
}

}  // namespace se_kernels::cuda::host
