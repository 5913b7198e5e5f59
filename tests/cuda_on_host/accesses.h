// Where a thread is in the kernel's code, in the build that observes its accesses.
#pragma once

#include <vector>

namespace se_kernels::cuda::host {

struct Thread;

// A call that a thread is in, and the calls around it. There is one of each, and it stays.
struct Call {
  const Call* outer;  // null: the kernel
  const void* pc;     // in the outer one, after the call
};

const Call* call_of(const Thread&);  // the innermost; null in the kernel itself

}  // namespace se_kernels::cuda::host
