// From the types in a Problem to types: of x, of the weights, of the sums.
#pragma once

#include "../api.h"
#include "vector.h"

namespace se_kernels::SE_ISA {

template <class T>
struct Type {
  using type = T;
};

// f(Type<W>) for the weights' type; double weights come with A = double only.
template <class A, class F>
void with_weights(DType type, F f) {
  switch (type) {
    case DType::float32:
      return f(Type<float>{});
    case DType::bfloat16:
      return f(Type<BFloat16>{});
    case DType::float16:
      return f(Type<Float16>{});
    case DType::float64:
      if constexpr (sizeof(A) == 8) return f(Type<double>{});
  }
}

// f(Type<X>, Type<A>): sums in double where x or the weights are double. Double weights for a
// narrower x are rare: dispatch.cpp runs them on the baseline, and only it compiles them.
template <class F>
void with_types(const Problem& p, F f) {
#ifdef SE_IS_BASELINE
  if (has_wide_weights(p)) {
    if (p.x_type == DType::float32) return f(Type<float>{}, Type<double>{});
    if (p.x_type == DType::bfloat16) return f(Type<BFloat16>{}, Type<double>{});
    return f(Type<Float16>{}, Type<double>{});
  }
#endif
  switch (p.x_type) {
    case DType::float32:
      return f(Type<float>{}, Type<float>{});
    case DType::bfloat16:
      return f(Type<BFloat16>{}, Type<float>{});
    case DType::float16:
      return f(Type<Float16>{}, Type<float>{});
    case DType::float64:
      return f(Type<double>{}, Type<double>{});
  }
}

}  // namespace se_kernels::SE_ISA
