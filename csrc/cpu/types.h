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

// f(Type<A>), the compute type. Sums in double are rare: build_for runs them on the baseline, and
// only it compiles them.
template <class F>
void with_compute_type(const Problem& p, F f) {
#ifdef SE_IS_BASELINE
  if (is_wide(p)) return f(Type<double>{});
#else
  (void)p;
#endif
  f(Type<float>{});
}

// f(Type<X>, Type<A>)
template <class F>
void with_types(const Problem& p, F f) {
  with_compute_type(p, [&](auto compute) {
    switch (p.x_type) {
      case DType::float32:
        return f(Type<float>{}, compute);
      case DType::bfloat16:
        return f(Type<BFloat16>{}, compute);
      case DType::float16:
        return f(Type<Float16>{}, compute);
      case DType::float64:
        if constexpr (sizeof(typename decltype(compute)::type) == 8)
          return f(Type<double>{}, compute);
    }
  });
}

}  // namespace se_kernels::SE_ISA
