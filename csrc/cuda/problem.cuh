// A problem of the C++ interface as plans and kernels take it.
#pragma once

#include "api.h"
#include "number.cuh"
#include "plan.h"

namespace se_kernels::cuda {

// Of what lies in a workspace.
inline std::int64_t aligned(std::int64_t size) {
  constexpr std::int64_t kAlignment = 128;
  return (size + kAlignment - 1) / kAlignment * kAlignment;
}

inline int bytes_of(DType type) {
  return type == DType::float64 ? 8 : type == DType::float32 ? 4 : 2;
}

inline Traits types_of(const Problem& p) {
  Traits traits{};
  traits.item_bytes = bytes_of(p.x_type), traits.weight_bytes = bytes_of(p.w_type);
  traits.sum_bytes = is_wide(p) ? 8 : 4, traits.nhwc = p.layout == Layout::nhwc;
  return traits;
}

// Of what the splits of a tile find.
inline std::int64_t parts_bytes(const TilePlan& plan, const Sizes& sizes, const Traits& traits) {
  if (plan.splits == 1) return 0;
  return std::int64_t(traits.sums) * sizes.images * plan.splits * sizes.channels * traits.sum_bytes;
}

inline Input as_input(const Output& t) {
  return {t.data, t.image_stride, t.channel_stride, t.pixel_stride};
}

inline Images images_of(const Problem& p, const Input& t) {
  const std::int64_t row = p.layout == Layout::nhwc ? t.pixel_stride : t.channel_stride;
  return {static_cast<unsigned char*>(const_cast<void*>(t.data)), t.image_stride, row, p.x_type};
}
inline Images images_of(const Problem& p, const Output& t) { return images_of(p, as_input(t)); }

inline void* at(const Call& call, std::int64_t offset) {
  return static_cast<unsigned char*>(call.workspace) + offset;
}

// body(number) with the kernels' type of x.
template <class Body>
void with_number(const Problem& p, const Body& body) {
  if (is_wide(p)) return body(WideFallback{});
  if (p.x_type == DType::float32) return body(float{});
  if (p.x_type == DType::bfloat16) return body(bfloat16{});
  body(float16{});
}

}  // namespace se_kernels::cuda
