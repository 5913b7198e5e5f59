// What the kernels ask of the machine: threads, barriers, shuffles, memory.
// The only place for intrinsics and PTX. A host compiler gets the stand-in of the tests instead.
#pragma once

#include <cstdint>

namespace se_kernels::cuda {

struct alignas(16) Vector16 {
  std::uint32_t words[4];
};
struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

constexpr int kWarp = 32;

}  // namespace se_kernels::cuda

#ifdef __CUDACC__
#define SE_UNROLL _Pragma("unroll")
#define SE_ROLLED _Pragma("unroll 1")  // more at a time take more registers
#else
#define SE_UNROLL
#define SE_ROLLED
#endif

#ifndef __CUDACC__
#include "cuda_on_host.h"
#else

#define SE_DEVICE __device__ __forceinline__
#define SE_CALLED __device__ __noinline__  // a call, where its code is long and seldom runs
#define SE_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define SE_PARAMETER const __grid_constant__

namespace se_kernels::cuda {

// ---- threads
SE_DEVICE int thread_index() { return int(threadIdx.x); }
SE_DEVICE int thread_count() { return int(blockDim.x); }
SE_DEVICE int block_index() { return int(blockIdx.x); }
SE_DEVICE int block_count() { return int(gridDim.x); }

SE_DEVICE void block_barrier() { __syncthreads(); }

SE_DEVICE int leading_zeros(int v) { return __clz(v); }

template <class T>
SE_DEVICE T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask);
}

// Optimization barrier: hides v, so that derived values are recomputed, not kept in registers.
SE_DEVICE int opaque(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

// The block's dynamic shared memory, aligned to 128 bytes.
SE_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char se_kernels_shared[];
  return se_kernels_shared;
}

// ---- global memory: 16 bytes, aligned
// Until when the L2 keeps it; before 8.0 it is not told.
SE_DEVICE std::uint64_t kept_last() {
  std::uint64_t policy = 0;
#if __CUDA_ARCH__ >= 800
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}
SE_DEVICE std::uint64_t dropped_first() {
  std::uint64_t policy = 0;
#if __CUDA_ARCH__ >= 800
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}

SE_DEVICE Vector16 load(const void* p, [[maybe_unused]] std::uint64_t policy, bool on) {
  Vector16 v;
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "{\n"
      ".reg .pred on;\n"
      "setp.ne.u32 on, %6, 0;\n"
      "@on ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;\n"
      "}"
      : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
      : "l"(p), "l"(policy), "r"(int(on)));
#else
  asm volatile(
      "{\n"
      ".reg .pred on;\n"
      "setp.ne.u32 on, %5, 0;\n"
      "@on ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
      : "l"(p), "r"(int(on)));
#endif
  return v;
}

// What is read again soon, and what is not; without a branch anything, unless `on`.
SE_DEVICE Vector16 load_keep(const void* p, bool on) { return load(p, kept_last(), on); }
SE_DEVICE Vector16 load_drop(const void* p, bool on) { return load(p, dropped_first(), on); }

SE_DEVICE void store_keep(void* p, Vector16 v) {
#if __CUDA_ARCH__ >= 800
  asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(p),
               "r"(v.words[0]), "r"(v.words[1]), "r"(v.words[2]), "r"(v.words[3]), "l"(kept_last())
               : "memory");
#else
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.words[0]),
               "r"(v.words[1]), "r"(v.words[2]), "r"(v.words[3])
               : "memory");
#endif
}

// What nobody reads soon: past what the L2 keeps.
SE_DEVICE void store_stream(void* p, Vector16 v) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.words[0]),
               "r"(v.words[1]), "r"(v.words[2]), "r"(v.words[3])
               : "memory");
}

// ---- numbers of 16 bits
SE_DEVICE float widen(float v) { return v; }
SE_DEVICE double widen(double v) { return v; }
SE_DEVICE float widen(bfloat16 v) { return __uint_as_float(std::uint32_t(v.bits) << 16); }
SE_DEVICE float widen(float16 v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
}

// To the nearest, ties to even.
SE_DEVICE void narrow(float v, float& out) { out = v; }
SE_DEVICE void narrow(double v, double& out) { out = v; }
SE_DEVICE void narrow(float v, float16& out) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
}
SE_DEVICE void narrow(float v, bfloat16& out) {
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
#else
  const std::uint32_t bits = __float_as_uint(v);
  out.bits = std::uint16_t(v == v ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : 0x7fffu);
#endif
}

// Two numbers of a 32-bit word, the first in the low half.
SE_DEVICE void widen_pair(std::uint32_t word, float16, float& low, float& high) {
  low = widen(float16{std::uint16_t(word)});
  high = widen(float16{std::uint16_t(word >> 16)});
}
SE_DEVICE void widen_pair(std::uint32_t word, bfloat16, float& low, float& high) {
  low = __uint_as_float(word << 16);
  high = __uint_as_float(word & 0xffff0000u);
}
SE_DEVICE std::uint32_t narrow_pair(float low, float high, float16) {
  std::uint32_t word;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#else
  float16 l, h;
  narrow(low, l), narrow(high, h);
  word = l.bits | std::uint32_t(h.bits) << 16;
#endif
  return word;
}
SE_DEVICE std::uint32_t narrow_pair(float low, float high, bfloat16) {
  std::uint32_t word;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#else
  bfloat16 l, h;
  narrow(low, l), narrow(high, h);
  word = l.bits | std::uint32_t(h.bits) << 16;
#endif
  return word;
}

SE_DEVICE double reciprocal(double v) { return 1 / v; }
// 1 / v to one unit in the last place, for v >= 1.
SE_DEVICE float reciprocal(float v) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}

SE_DEVICE float word_to_float(std::uint32_t word) { return __uint_as_float(word); }
SE_DEVICE std::uint32_t float_to_word(float v) { return __float_as_uint(v); }

// ---- counters that blocks share, zero at the launch
SE_DEVICE std::uint32_t take(std::uint32_t* counter) { return atomicAdd(counter, 1u); }

// Adds one. Orders what this thread knows of before it, for whoever reads the sum by the next two.
SE_DEVICE void add_release(std::uint32_t* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

// The same, and gives what was there.
SE_DEVICE std::uint32_t count_in(std::uint32_t* counter) {
  std::uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
}

SE_DEVICE std::uint32_t read_count(const std::uint32_t* counter) {
  std::uint32_t count;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
  return count;
}

// Lets others run, in a loop that waits for them.
SE_DEVICE void pause() { __nanosleep(32); }

// Written by another block of this launch: past the L1.
SE_DEVICE float load_shared_result(const float* p) { return __ldcg(p); }
SE_DEVICE double load_shared_result(const double* p) { return __ldcg(p); }

}  // namespace se_kernels::cuda
#endif
