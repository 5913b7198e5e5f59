// What each build of kernels.cpp exports: one an instruction set.
#pragma once

#include "plan.h"

namespace se_kernels {

// One build's entry points, those of api.h.
struct Kernels {
  void (*forward)(const Problem&, const Forward&, const Plan&, const Scratch&);
  void (*backward)(const Problem&, const Backward&, const Plan&, const Scratch&);
  void (*squeeze)(const Problem&, const SqueezeForward&, const Plan&, const Scratch&);
  void (*scale)(const Problem&, const ScaleForward&, const Plan&, const Scratch&);
  void (*scale_backward)(const Problem&, const ScaleBackward&, const Plan&, const Scratch&);
  void (*squeeze_backward)(const Problem&, const SqueezeBackward&, const Plan&, const Scratch&);
};

struct NormKernels {
  void (*moments)(const Problem&, const NormMoments&, const NormScratch&);
  void (*squeeze)(const Problem&, const NormSqueeze&, const NormScratch&);
  void (*scale)(const Problem&, const NormScale&, const NormScratch&);
  void (*scale_backward)(const Problem&, const NormScaleBackward&, const NormScratch&);
  void (*squeeze_backward)(const Problem&, const NormSqueezeBackward&, const NormScratch&);
  void (*inference)(const Problem&, const NormInference&, const Plan&, const Scratch&);
};

namespace baseline {
extern const Kernels kernels;
extern const NormKernels norm_kernels;
}  // namespace baseline
namespace avx2 {
extern const Kernels kernels;
extern const NormKernels norm_kernels;
}  // namespace avx2
namespace avx512 {
extern const Kernels kernels;
extern const NormKernels norm_kernels;
}  // namespace avx512

}  // namespace se_kernels
