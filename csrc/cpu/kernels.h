// What each build of kernels.cpp exports: one a instruction set.
#pragma once

#include "plan.h"

namespace se_kernels {

namespace baseline {
void forward(const Problem&, const Forward&, const Plan&, const Scratch&);
void backward(const Problem&, const Backward&, const Plan&, const Scratch&);
}  // namespace baseline

namespace avx2 {
void forward(const Problem&, const Forward&, const Plan&, const Scratch&);
void backward(const Problem&, const Backward&, const Plan&, const Scratch&);
}  // namespace avx2

namespace avx512 {
void forward(const Problem&, const Forward&, const Plan&, const Scratch&);
void backward(const Problem&, const Backward&, const Plan&, const Scratch&);
}  // namespace avx512

}  // namespace se_kernels
