// What -fsanitize=thread has the compiler call, in place of libtsan: the accesses of kernels go to
// the observers, without those of stacks and of the stand-in.
#include "accesses.h"

#include <pthread.h>

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>

#include "machine.h"

namespace se_kernels::cuda::host {
namespace {

// The stack of the host thread that launches: a kernel's parameters lie there.
struct HostStack {
  std::uintptr_t start = 0, bytes = 0;
  HostStack() {
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) return;
    void* low = nullptr;
    std::size_t size = 0;
    pthread_attr_getstack(&attributes, &low, &size);
    pthread_attr_destroy(&attributes);
    start = reinterpret_cast<std::uintptr_t>(low), bytes = size;
  }
  bool holds(const void* p) const { return reinterpret_cast<std::uintptr_t>(p) - start < bytes; }
};

bool is_on_a_stack(const void* p) {
  static thread_local const HostStack host;
  return under_way->running->fiber->holds(p) || host.holds(p);
}

// Made at the first call of each, and looked up by (outer, pc) from then on.
struct CallHash {
  std::size_t operator()(const std::pair<const Call*, const void*>& key) const {
    return std::hash<const void*>()(key.first) * 31 + std::hash<const void*>()(key.second);
  }
};
const Call* call_from(const Call* outer, const void* pc) {
  static std::unordered_map<std::pair<const Call*, const void*>, std::unique_ptr<Call>, CallHash>
      calls;
  static const Call* recent[1 << 12];  // most are there
  const Call*& near = recent[CallHash()({outer, pc}) * 0x9e3779b97f4a7c15u >> 52];
  if (near && near->outer == outer && near->pc == pc) return near;
  auto& call = calls[{outer, pc}];
  if (!call) call = std::make_unique<Call>(Call{outer, pc});
  return near = call.get();
}

void access(const void* p, std::size_t bytes, bool writes, const void* pc) {
  if (!under_way || is_on_a_stack(p)) return;
  observe(&Observer::on_access, *under_way->running, p, unsigned(bytes), writes, pc);
}

}  // namespace

void announce_vector() {
  if (under_way) observe(&Observer::on_vector, *under_way->running);
}
void announce_use() {
  if (under_way) observe(&Observer::on_use, *under_way->running);
}

const Call* call_of(const Thread& thread) { return thread.call; }

}  // namespace se_kernels::cuda::host

using namespace se_kernels::cuda::host;

#define SE_TSAN extern "C" __attribute__((visibility("hidden")))
#define SE_ACCESSES(bytes)                                \
  SE_TSAN void __tsan_read##bytes(void* p) {              \
    access(p, bytes, false, __builtin_return_address(0)); \
  }                                                       \
  SE_TSAN void __tsan_write##bytes(void* p) {             \
    access(p, bytes, true, __builtin_return_address(0));  \
  }                                                       \
  SE_TSAN void __tsan_unaligned_read##bytes(void* p) {    \
    access(p, bytes, false, __builtin_return_address(0)); \
  }                                                       \
  SE_TSAN void __tsan_unaligned_write##bytes(void* p) {   \
    access(p, bytes, true, __builtin_return_address(0));  \
  }

SE_ACCESSES(1)
SE_ACCESSES(2)
SE_ACCESSES(4)
SE_ACCESSES(8)
SE_ACCESSES(16)

SE_TSAN void __tsan_read_range(void* p, std::size_t bytes) {
  access(p, bytes, false, __builtin_return_address(0));
}
SE_TSAN void __tsan_write_range(void* p, std::size_t bytes) {
  access(p, bytes, true, __builtin_return_address(0));
}

SE_TSAN void __tsan_func_entry(void* pc) {
  if (!under_way) return;
  Thread& thread = *under_way->running;
  thread.call = call_from(thread.call, pc);
  observe(&Observer::on_call, thread, pc);
}
SE_TSAN void __tsan_func_exit() {
  if (!under_way || !under_way->running->call) return;
  Thread& thread = *under_way->running;
  thread.call = thread.call->outer;
  observe(&Observer::on_return, thread);
}

SE_TSAN void __tsan_init() {}
SE_TSAN void __tsan_vptr_read(void**) {}
SE_TSAN void __tsan_vptr_update(void**, void*) {}
