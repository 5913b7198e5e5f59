// A parallel region in the OpenMP runtime that torch has loaded. Nothing is linked: GCC's libgomp
// and LLVM's libomp both export the functions below, so either resolves them, whatever the
// compiler.
#pragma once

#if defined(__APPLE__)
#include <omp.h>
#else
extern "C" {
int omp_get_thread_num() noexcept;
int omp_get_num_threads() noexcept;
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
void GOMP_barrier();
}
#endif

namespace se_kernels {

// Waits for all threads of the region.
inline void barrier() {
#if defined(__APPLE__)
#pragma omp barrier
#else
  GOMP_barrier();
#endif
}

// body(thread, count) in each of at most `threads` threads.
template <class Body>
void parallel(int threads, Body body) {
#if defined(__APPLE__)
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num(), omp_get_num_threads());
#else
  GOMP_parallel(
      [](void* data) { (*static_cast<Body*>(data))(omp_get_thread_num(), omp_get_num_threads()); },
      &body, unsigned(threads), 0);
#endif
}

}  // namespace se_kernels
