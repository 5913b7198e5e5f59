// The lines of the kernels' source that an address in their code stands for.
#pragma once

#include <cstdint>
#include <string>

#include "accesses.h"

namespace se_kernels::cuda::host {

// "scale.cuh:190, called at forward.cu:98, ..." of an access and of the calls that it is in, the
// stand-in's own lines left out. By addr2line, which takes a second.
std::string lines_of(const void* pc, const Call* call);

// An address in this library, as addr2line takes it, and back. 0: no address.
std::uintptr_t offset_of(const void* pc);
const void* pc_at(std::uintptr_t offset);

}  // namespace se_kernels::cuda::host
