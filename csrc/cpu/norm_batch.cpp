// A batch with a norm before the block: sweeps over it, and the solve between them.
#include <cstddef>
#include <initializer_list>

#include "build.h"
#include "memory.h"

namespace se_kernels {
namespace {

Norm norm_of(const Problem& p, const void* norm, Pre pre) {
  const auto* mean = static_cast<const std::byte*>(norm);
  const std::int64_t row = p.channels * compute_size(p);
  return {mean, mean + row, mean + 2 * row, pre};
}

// The parts of one allocation, one behind the other.
class Parts {
 public:
  explicit Parts(const Memory& memory) : next_(static_cast<std::byte*>(memory.get())) {}
  void* take(std::int64_t bytes) {
    void* part = next_;
    next_ += rounded_up(bytes);
    return part;
  }

 private:
  std::byte* next_;
};

int threads_of(const Problem& p) { return make_plan(p, 1, size_of(p.x_type)).threads; }

}  // namespace

Status norm_forward(const Problem& p, const NormForward& f) {
  const SolveKernels& solve = build_for(p).solve_kernels;
  const bool active = f.pre != Pre::identity;
  const std::int64_t images = p.images, size = compute_size(p), C = images * p.channels;
  const Memory memory = allocate(2 * rounded_up(C * 8) + rounded_up(C * size) +
                                 rounded_up(images * p.reduced * size));
  if (!memory) return Status::out_of_memory;
  Parts parts(memory);
  SolveScratch scratch{};
  scratch.threads = threads_of(p);
  scratch.means = static_cast<double*>(parts.take(C * 8));
  scratch.m2 = static_cast<double*>(parts.take(C * 8));
  scratch.z = parts.take(C * size);
  scratch.h = parts.take(images * p.reduced * size);

  Status status = Status::ok;
  if (f.training || !(active || f.means))
    status = norm_moments(p, {f.x, scratch.means, scratch.m2});
  if (status != Status::ok) return status;
  solve.norm(p, f, scratch);
  const Norm norm = norm_of(p, f.norm, f.pre);
  if (active) status = norm_squeeze(p, {f.x, norm, f.squeezed});
  if (status != Status::ok) return status;
  solve.excite(p, f, scratch);
  return norm_scale(p, {f.x, f.residual, norm, f.s, f.y, f.mask});
}

Status norm_backward(const Problem& p, const NormBackward& b) {
  const SolveKernels& solve = build_for(p).solve_kernels;
  const std::int64_t size = compute_size(p), C = p.images * p.channels * size,
                     R = p.images * p.reduced * size, channels = p.channels * size,
                     sums = (b.pre == Pre::identity ? 2 : 5) * C;
  const Memory memory =
      allocate(rounded_up(sums) + 3 * rounded_up(C) + 2 * rounded_up(R) + 2 * rounded_up(channels));
  if (!memory) return Status::out_of_memory;
  Parts parts(memory);
  SolveScratch scratch{};
  scratch.threads = threads_of(p);
  scratch.sums = parts.take(sums);
  for (void** part : {&scratch.z, &scratch.de, &scratch.dz}) *part = parts.take(C);
  for (void** part : {&scratch.h, &scratch.da}) *part = parts.take(R);
  for (void** part : {&scratch.slope, &scratch.offset}) *part = parts.take(channels);

  scratch.d = b.d ? b.d : scratch.dz;

  const Norm norm = norm_of(p, b.norm, b.pre);
  Status status = norm_scale_backward(p, {b.dy, b.x, b.mask, norm, b.dr, scratch.sums});
  if (status != Status::ok) return status;
  solve.backward(p, b, scratch);
  if (b.dx.data) {
    const bool written = b.dr.data;  // then dr is g
    const Input g =
        written ? Input{b.dr.data, b.dr.image_stride, b.dr.channel_stride, b.dr.pixel_stride}
                : b.dy;
    status = norm_squeeze_backward(
        p, {g, b.x, written ? nullptr : b.mask, norm, b.s, scratch.d,
            b.training ? scratch.slope : nullptr, b.training ? scratch.offset : nullptr, b.dx});
  }
  solve.weight_gradients(p, b, scratch);
  return status;
}

}  // namespace se_kernels
