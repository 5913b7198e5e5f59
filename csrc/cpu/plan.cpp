#include "plan.h"

#include <algorithm>

namespace se_kernels {
namespace {

constexpr std::int64_t kGrain = std::int64_t{32} << 10;      // elements worth a thread
constexpr std::int64_t kGroupBytes = std::int64_t{4} << 20;  // a thread's share of the last cache
constexpr std::int64_t kStreamBytes = std::int64_t{16} << 20;
constexpr std::int64_t kMaxGroup = 16;

}  // namespace

Plan make_plan(const Problem& p, int tensors, std::int64_t element_bytes) {
  const std::int64_t plane = p.channels * p.pixels, all = p.images * plane;
  Plan plan;
  const std::int64_t weights = 2 * p.channels * p.reduced;
  const std::int64_t work = all + weights + p.images * weights / 8;
  plan.threads = int(std::clamp<std::int64_t>(work / kGrain, 1, std::max(p.threads, 1)));
  plan.solo = p.images / plan.threads * plan.threads;
  const std::int64_t image_bytes = std::max<std::int64_t>(1, tensors * plane * element_bytes);
  plan.group = std::clamp<std::int64_t>(kGroupBytes / image_bytes, 1, kMaxGroup);
  const std::int64_t row = (p.layout == Layout::nchw ? p.pixels : p.channels) * element_bytes;
  plan.streaming = all * element_bytes >= kStreamBytes && (row >= 512 || row % 64 == 0);
  return plan;
}

}  // namespace se_kernels
