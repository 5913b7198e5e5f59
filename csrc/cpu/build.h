// The builds of the kernels, one per instruction set, and the one for this processor.
#pragma once

#include "kernels.h"
#include "solve.h"

namespace se_kernels {

struct Build {
  const char* name;
  bool (*runs_here)();
  const Kernels& kernels;
  const NormKernels& norm_kernels;
  const SolveKernels& solve_kernels;
};

// Chosen once, from the processor and the environment variable SE_KERNELS_CPU_ISA.
const Build& build();

// The baseline's for sums in double, which no other has.
const Build& build_for(const Problem& p);

}  // namespace se_kernels
