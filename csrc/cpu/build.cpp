// Which build of the kernels runs on this processor.
#include "build.h"

#include <cstdlib>
#include <cstring>
#if defined(SE_HAVE_AVX2)
#include <cpuid.h>
#endif

namespace se_kernels {
namespace {

#if defined(SE_HAVE_AVX2)
// Clang 14 and GCC 10 have no such name for __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

// widest first
constexpr Build kBuilds[] = {
#ifdef SE_HAVE_AVX512
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma") && has_f16c();
     },
     avx512::kernels, avx512::norm_kernels, avx512::solve_kernels},
#endif
#ifdef SE_HAVE_AVX2
    {"avx2",
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); },
     avx2::kernels, avx2::norm_kernels, avx2::solve_kernels},
#endif
    {"baseline", [] { return true; }, baseline::kernels, baseline::norm_kernels,
     baseline::solve_kernels},
};

constexpr const Build& kBaseline = kBuilds[sizeof(kBuilds) / sizeof(kBuilds[0]) - 1];

}  // namespace

const Build& build() {
  static const Build& chosen = []() -> const Build& {
    const char* named = std::getenv("SE_KERNELS_CPU_ISA");
    bool reached = named == nullptr;
    for (const Build& candidate : kBuilds) {
      reached = reached || std::strcmp(named, candidate.name) == 0;
      if (reached && candidate.runs_here()) return candidate;
    }
    return kBaseline;
  }();
  return chosen;
}

const Build& build_for(const Problem& p) { return is_wide(p) ? kBaseline : build(); }

const char* instruction_set() { return build().name; }

}  // namespace se_kernels
