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

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace se_kernels
