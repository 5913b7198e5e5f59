// Stands in for CUDA where the kernels are compiled by a host compiler: what primitives.cuh and
// runtime.cuh ask of a GPU, on one host thread. Tests only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "cuda/api.h"
#include "cuda/launch.h"
#include "cuda/primitives.cuh"
#include "cuda/survey.h"

#define SE_DEVICE inline
#define SE_CALLED inline
#define SE_UNOBSERVED __attribute__((no_sanitize("thread"))) inline  // reads the stand-in's own
#define SE_KERNEL(threads, blocks) void
#define SE_PARAMETER const

namespace se_kernels::cuda {

// ---- the machine: schedule.cpp, barriers.cpp, counters.cpp
namespace host {

struct BlockFacts {
  int index, count, threads;
  unsigned char* shared;
};
struct ThreadFacts {
  int index;
  const BlockFacts* block;
};
extern const ThreadFacts* here;  // the thread that runs

[[noreturn]] void fail(const std::string& what);  // ends the launch with an error
void ask();                                       // others run first
void interrupt();                                 // others may run first
std::uint64_t exchange(std::uint64_t bits, int mask);
void run(const Shape& shape, void (*thread)(const void*), const void* arguments);
void count_memset();
// Where launches are only recorded: keeps this one, and says so.
bool records(const Shape& shape, const void* parameters, std::size_t bytes);

#ifdef SE_OBSERVED       // accesses.cpp
void announce_vector();  // the next access is of a 16-byte primitive
void announce_use();     // of what was loaded
#else
inline void announce_vector() {}
inline void announce_use() {}
#endif

inline void check_aligned(const void* p, const char* call) {
  if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0)
    fail(std::string(call) + ": the address is not a multiple of 16 bytes");
}

template <class To, class From>
To bit_cast(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &v, sizeof(To));
  return to;
}

}  // namespace host

// ---- threads
SE_UNOBSERVED int thread_index() { return host::here->index; }
SE_UNOBSERVED int thread_count() { return host::here->block->threads; }
SE_UNOBSERVED int block_index() { return host::here->block->index; }
SE_UNOBSERVED int block_count() { return host::here->block->count; }

void block_barrier();
SE_DEVICE int leading_zeros(int v) { return v == 0 ? 32 : __builtin_clz(unsigned(v)); }

template <class T>
SE_DEVICE T shuffle_xor(T v, int mask) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  bits = host::exchange(bits, mask);
  std::memcpy(&v, &bits, sizeof(T));
  return v;
}

SE_DEVICE int opaque(int v) { return v; }

SE_UNOBSERVED unsigned char* shared_memory() { return host::here->block->shared; }

// ---- global memory
SE_DEVICE Vector16 load_keep(const void* p, bool on) {
  if (!on) return {};
  host::check_aligned(p, "load_keep");
  host::announce_vector();
  Vector16 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
SE_DEVICE Vector16 load_drop(const void* p, bool on) {
  if (!on) return {};
  host::check_aligned(p, "load_drop");
  host::announce_vector();
  Vector16 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
SE_DEVICE void store_keep(void* p, Vector16 v) {
  host::check_aligned(p, "store_keep");
  host::announce_vector();
  std::memcpy(p, &v, sizeof(v));
}
SE_DEVICE void store_stream(void* p, Vector16 v) {
  host::check_aligned(p, "store_stream");
  host::announce_vector();
  std::memcpy(p, &v, sizeof(v));
}

SE_DEVICE float reciprocal(float v) { return 1 / v; }
SE_DEVICE double reciprocal(double v) { return 1 / v; }

// ---- numbers of 16 bits
SE_DEVICE float word_to_float(std::uint32_t word) {
  host::announce_use();
  return host::bit_cast<float>(word);
}
SE_DEVICE std::uint32_t float_to_word(float v) { return host::bit_cast<std::uint32_t>(v); }

SE_DEVICE float widen(float v) { return v; }
SE_DEVICE double widen(double v) { return v; }
SE_DEVICE float widen(bfloat16 v) { return word_to_float(std::uint32_t(v.bits) << 16); }
SE_DEVICE float widen(float16 v) {
  const std::uint32_t sign = std::uint32_t(v.bits & 0x8000u) << 16, rest = v.bits & 0x7fffu;
  if (rest >= 0x7c00u) return word_to_float(sign | 0x7f800000u | rest << 13);  // inf, NaN
  // the exponent's bias, 15, to 127; a subnormal becomes normal in the product
  return word_to_float(sign | float_to_word(word_to_float(rest << 13) * 0x1p112f));
}

SE_DEVICE void narrow(float v, float& out) { out = v; }
SE_DEVICE void narrow(double v, double& out) { out = v; }
SE_DEVICE void narrow(float v, bfloat16& out) {
  const std::uint32_t word = float_to_word(v);
  out.bits = std::uint16_t(v == v ? (word + 0x7fffu + (word >> 16 & 1u)) >> 16 : 0x7fffu);
}
SE_DEVICE void narrow(float v, float16& out) {
  const std::uint32_t word = float_to_word(v), sign = word >> 16 & 0x8000u,
                      rest = word & 0x7fffffffu;
  std::uint32_t half;
  if (rest > 0x7f800000u)
    half = 0x7fffu;  // NaN, as a GPU writes it
  else if (rest >= float_to_word(65520.f))
    half = 0x7c00u;  // half way from the largest to the next power of two, and above
  else if (rest < float_to_word(0x1p-14f))  // the last place of 0.5 is a subnormal's: 2^-24
    half = float_to_word(word_to_float(rest) + 0.5f) - float_to_word(0.5f);
  else
    half = (rest - (112u << 23) + 0xfffu + (rest >> 13 & 1u)) >> 13;
  out.bits = std::uint16_t(v == v ? sign | half : half);
}

template <class T>
SE_DEVICE void widen_pair(std::uint32_t word, T, float& low, float& high) {
  low = widen(T{std::uint16_t(word)});
  high = widen(T{std::uint16_t(word >> 16)});
}
template <class T>
SE_DEVICE std::uint32_t narrow_pair(float low, float high, T) {
  T l, h;
  narrow(low, l), narrow(high, h);
  return l.bits | std::uint32_t(h.bits) << 16;
}

// ---- counters that blocks share
std::uint32_t take(std::uint32_t* counter);
void add_release(std::uint32_t* counter);
std::uint32_t count_in(std::uint32_t* counter);
std::uint32_t read_count(const std::uint32_t* counter);
SE_DEVICE void pause() { host::ask(); }

SE_DEVICE float load_shared_result(const float* p) { return *p; }
SE_DEVICE double load_shared_result(const double* p) { return *p; }

// ---- the runtime
Gpu properties_of(int device);

class OnDevice {
 public:
  explicit OnDevice(int) {}
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
};

Surveyed survey_of(const Shape&);

inline void zero(void* data, std::int64_t bytes, const Shape& shape, void*) {
  if (survey()) return;
  host::count_memset();
  if (host::records(shape, nullptr, 0)) return;
  std::memset(data, 0, std::size_t(bytes));
}

template <class Parameters>
void launch(void (*kernel)(Parameters), const Parameters& parameters, const Shape& shape, void*) {
  if (survey()) return survey()->push_back(survey_of(shape));
  if (host::records(shape, &parameters, sizeof(parameters))) return;
  struct Call {
    void (*kernel)(Parameters);
    const Parameters& parameters;
  };
  const Call call{kernel, parameters};
  host::run(
      shape,
      [](const void* p) {
        const Call& c = *static_cast<const Call*>(p);
        c.kernel(c.parameters);
      },
      &call);
}

}  // namespace se_kernels::cuda
