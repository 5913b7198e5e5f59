// The CPU entry points: a plan, scratch memory, and the build for this processor.
#include <sys/mman.h>

#include "build.h"
#include "memory.h"

namespace se_kernels {
namespace {

constexpr std::int64_t kHugePage = std::int64_t{2} << 20;
constexpr std::int64_t kAlwaysMapped = std::int64_t{32} << 20;

// One allocation for all of a call's scratch.
class Arena {
 public:
  Arena(const Problem& p, const Plan& plan) {
    const std::int64_t size = compute_size(p), by_channel = p.images * p.channels * size,
                       by_reduced = p.images * p.reduced * size,
                       by_thread = plan.threads * p.channels * size,
                       parts = plan.threads * plan.group * p.channels;
    for (void*& part : scratch_.by_channel) place(part, by_channel);
    for (void*& part : scratch_.by_reduced) place(part, by_reduced);
    place(scratch_.sums, by_thread);
    place(scratch_.totals, parts * 8);
    const std::int64_t peaks = p.squeeze == Squeeze::avg ? 0 : parts * size;
    place(scratch_.peaks, peaks);
    place(scratch_.ties, peaks);
    memory_ = allocate(used_);
    for (int i = 0; i < count_; ++i)
      *places_[i].part = static_cast<char*>(memory_.get()) + places_[i].offset;
  }
  explicit operator bool() const { return memory_ != nullptr; }
  const Scratch& scratch() const { return scratch_; }

 private:
  struct Place {
    void** part;
    std::int64_t offset;
  };
  void place(void*& part, std::int64_t bytes) {
    places_[count_++] = {&part, used_};
    used_ += rounded_up(bytes);
  }
  Scratch scratch_{};
  Place places_[10];
  int count_ = 0;
  std::int64_t used_ = 0;
  Memory memory_;
};

// glibc maps what is above 32 MB anew each time: have it faulted in by 2 MB instead of by 4 KB.
void expect_huge_pages(const Problem& p, const Output& t) {
#ifdef MADV_HUGEPAGE
  const std::int64_t bytes = p.images * p.channels * p.pixels * size_of(p.x_type);
  if (!t.data || bytes <= kAlwaysMapped) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(t.data);
  const auto first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (begin + std::uintptr_t(bytes)) / kHugePage * kHugePage;
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)p, (void)t;
#endif
}

// tensors: as for make_plan.
template <class Arguments, class Kernel, class... Outputs>
Status run(const Problem& p, const Arguments& arguments, Kernel kernel, int tensors,
           const Outputs&... outputs) {
  const Plan plan = make_plan(p, tensors, size_of(p.x_type));
  const Arena arena(p, plan);
  if (!arena) return Status::out_of_memory;
  (expect_huge_pages(p, outputs), ...);
  kernel(p, arguments, plan, arena.scratch());
  return Status::ok;
}

// sums: how many sums a channel the sweep takes.
template <class Arguments, class Kernel, class... Outputs>
Status sweep(const Problem& p, const Arguments& arguments, Kernel kernel, int sums,
             const Outputs&... outputs) {
  const Plan plan = make_plan(p, 1, size_of(p.x_type));
  const std::int64_t size = compute_size(p), C = p.channels,
                     numbers = rounded_up(plan.threads * sums * C * 8);
  const Memory memory = allocate(4 * numbers + rounded_up(plan.threads * C * size));
  if (!memory) return Status::out_of_memory;
  char* at = static_cast<char*>(memory.get());
  (expect_huge_pages(p, outputs), ...);
  kernel(
      p, arguments,
      {plan.threads, sums, plan.streaming, at, at + numbers, at + 3 * numbers, at + 4 * numbers});
  return Status::ok;
}

int sums_of(const Norm& norm) { return norm.pre == Pre::identity ? 2 : 5; }

}  // namespace

Status forward(const Problem& p, const Forward& f) {
  return run(p, f, build_for(p).kernels.forward, f.residual.data ? 2 : 1, f.y);
}

Status backward(const Problem& p, const Backward& b) {
  return run(p, b, build_for(p).kernels.backward, 2, b.dx, b.dr);
}

Status squeeze(const Problem& p, const SqueezeForward& f) {
  return run(p, f, build_for(p).kernels.squeeze, 1);
}

Status scale(const Problem& p, const ScaleForward& f) {
  return run(p, f, build_for(p).kernels.scale, 1, f.y);
}

Status scale_backward(const Problem& p, const ScaleBackward& b) {
  return run(p, b, build_for(p).kernels.scale_backward, 2, b.dx, b.dr);
}

Status squeeze_backward(const Problem& p, const SqueezeBackward& b) {
  return run(p, b, build_for(p).kernels.squeeze_backward, 2, b.dx);
}

Status norm_moments(const Problem& p, const NormMoments& f) {
  return sweep(p, f, build_for(p).norm_kernels.moments, 2);
}

Status norm_squeeze(const Problem& p, const NormSqueeze& f) {
  return sweep(p, f, build_for(p).norm_kernels.squeeze, 1);
}

Status norm_scale(const Problem& p, const NormScale& f) {
  return sweep(p, f, build_for(p).norm_kernels.scale, 0, f.y);
}

Status norm_scale_backward(const Problem& p, const NormScaleBackward& b) {
  return sweep(p, b, build_for(p).norm_kernels.scale_backward, sums_of(b.norm), b.dr);
}

Status norm_squeeze_backward(const Problem& p, const NormSqueezeBackward& b) {
  return sweep(p, b, build_for(p).norm_kernels.squeeze_backward, 0, b.dx);
}

Status norm_inference(const Problem& p, const NormInference& f) {
  return run(p, f, build_for(p).norm_kernels.inference, f.residual.data ? 2 : 1, f.y);
}

}  // namespace se_kernels
