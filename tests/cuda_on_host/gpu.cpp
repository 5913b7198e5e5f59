// The GPU that the tests pretend to have, the order of its work, and its launches: set and read by
// ctypes (tests/host_gpu.py).
#include <algorithm>
#include <mutex>

#include "machine.h"

namespace se_kernels::cuda {
namespace host {
namespace {

std::mutex mutex;  // one launch at a time, of all threads of the process
Gpu settings{0, 4, 1 << 20, 227 << 10, 228 << 10, 64};
unsigned seed = 1;
int resident = 0;
int launches = 0, memsets = 0;
std::string last_launch;
// Called with each launch that is recorded in place of being run: kernel, blocks, threads, bytes of
// shared memory, parameters and their bytes.
using Recorder = void (*)(const char*, int, int, int, const void*, std::size_t);
Recorder recorder = nullptr;

void check(const Shape& shape) {
  const auto expect = [&](bool right, const std::string& what) {
    if (!right) fail(describe(shape) + ": invalid configuration: expected " + what);
  };
  constexpr int kMostThreads = 1024;
  expect(shape.blocks > 0, "a block");
  expect(shape.threads > 0 && shape.threads <= kMostThreads && shape.threads % kWarp == 0,
         "whole warps, 1024 threads at most");
  expect(shape.shared_bytes >= 0 && shape.shared_bytes <= settings.shared_bytes,
         std::to_string(settings.shared_bytes) + " bytes of shared memory at most");
}

}  // namespace

void run(const Shape& shape, void (*thread)(const void*), const void* arguments) {
  const std::lock_guard<std::mutex> lock(mutex);
  check(shape);
  ++launches;
  last_launch = describe(shape);
  Launch(shape, thread, arguments, seed, resident).run();
}

void count_memset() {
  const std::lock_guard<std::mutex> lock(mutex);
  ++memsets;
}

bool records(const Shape& shape, const void* parameters, std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (recorder && parameters) {
    check(shape);
    recorder(shape.kernel.c_str(), shape.blocks, shape.threads, shape.shared_bytes, parameters,
             bytes);
  }
  return recorder != nullptr;
}

}  // namespace host

Gpu properties_of(int device) {
  const std::lock_guard<std::mutex> lock(host::mutex);
  Gpu gpu = host::settings;
  gpu.device = device;
  return gpu;
}

// As if threads and shared memory alone were short.
Surveyed survey_of(const Shape& shape) {
  const std::lock_guard<std::mutex> lock(host::mutex);
  host::check(shape);
  constexpr int kReserved = 1024, kThreadsInAll = 2048;  // bytes that a GPU keeps of each block
  const int blocks = std::min(kThreadsInAll / shape.threads, host::settings.shared_bytes_in_all /
                                                                 (shape.shared_bytes + kReserved));
  return {shape, blocks};
}

}  // namespace se_kernels::cuda

#define SE_EXPORT extern "C" __attribute__((visibility("default")))

using namespace se_kernels::cuda::host;

SE_EXPORT void se_host_set_gpu(int multiprocessors, int l2_bytes, int shared_bytes,
                               int shared_bytes_in_all, int threads) {
  const std::lock_guard<std::mutex> lock(mutex);
  settings = {0, multiprocessors, l2_bytes, shared_bytes, shared_bytes_in_all, threads};
}

// seed 0: blocks and threads in order; else drawn. resident: blocks at a time, 0 for all.
SE_EXPORT void se_host_set_order(unsigned new_seed, int new_resident) {
  const std::lock_guard<std::mutex> lock(mutex);
  seed = new_seed;
  resident = new_resident;
}

// From here on launches are recorded, not run; with null they run again.
SE_EXPORT void se_host_set_recorder(void* new_recorder) {
  const std::lock_guard<std::mutex> lock(mutex);
  recorder = reinterpret_cast<Recorder>(new_recorder);
}

SE_EXPORT int se_host_launches() {
  const std::lock_guard<std::mutex> lock(mutex);
  return launches;
}

SE_EXPORT int se_host_memsets() {
  const std::lock_guard<std::mutex> lock(mutex);
  return memsets;
}

// Writes the last launch's description, cut to the size.
SE_EXPORT void se_host_last_launch(char* text, std::size_t size) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (size > 0) text[last_launch.copy(text, size - 1)] = '\0';
}
