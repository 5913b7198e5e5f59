// Kernels of known traffic, for tests/gpu/test_cuda_traffic.py.
#include "selftest.h"

namespace se_kernels::cuda {
namespace {

SE_KERNEL(64, 1) copies_vectors(SE_PARAMETER Parameters p) {
  for (int i = 4 * thread_index(); i < p.size; i += 4 * thread_count())
    store_stream(p.out + i, load_keep(p.in + i, true));
}
SE_KERNEL(64, 1) copies_from_the_second(SE_PARAMETER Parameters p) {
  p.out[thread_index()] = p.in[thread_index() + 1];
}
SE_KERNEL(64, 1) copies_every_so_many(SE_PARAMETER Parameters p) {
  p.out[thread_index() * p.size] = p.in[thread_index() * p.size];
}
SE_KERNEL(64, 1) copies_so_many(SE_PARAMETER Parameters p) {
  if (thread_index() < p.size) p.out[thread_index()] = p.in[thread_index()];
}
SE_KERNEL(64, 1) copies_the_first(SE_PARAMETER Parameters p) { p.out[thread_index()] = p.in[0]; }

// A T of shared memory each, so many from lane to lane; written and read.
template <class T>
SE_DEVICE void touch_shared(SE_PARAMETER Parameters p) {
  auto* numbers = reinterpret_cast<T*>(shared_memory());
  numbers[thread_index() * p.size] = T{};
  const T read = numbers[thread_index() * p.size];
  reinterpret_cast<T*>(p.out)[thread_index()] = read;
}
SE_KERNEL(32, 1) touches_floats(SE_PARAMETER Parameters p) { touch_shared<float>(p); }
SE_KERNEL(32, 1) touches_doubles(SE_PARAMETER Parameters p) { touch_shared<double>(p); }
SE_KERNEL(32, 1) touches_vectors(SE_PARAMETER Parameters p) { touch_shared<Vector16>(p); }
SE_KERNEL(32, 1) touches_halves(SE_PARAMETER Parameters p) { touch_shared<float16>(p); }

// Three rows of four numbers a lane, the last of them in `size` lanes only.
SE_DEVICE void copy_row(const float* in, float* out, int count) {
  for (int i = 0; i < count; ++i) out[i * thread_count()] = in[i * thread_count()];
}
SE_KERNEL(32, 1) copies_rows(SE_PARAMETER Parameters p) {
  for (int row = 0; row < 3; ++row) {
    const int first = row * 4 * thread_count() + thread_index();
    copy_row(p.in + first, p.out + first, thread_index() < p.size ? 4 : 3);
  }
}

// Two times `size` vectors, four at most, loaded before the first is used.
SE_KERNEL(64, 1) loads_ahead(SE_PARAMETER Parameters p) {
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    Vector16 batch[4];
    for (int i = 0; i < p.size; ++i)
      batch[i] =
          load_drop(p.in + 4 * ((round * p.size + i) * thread_count() + thread_index()), true);
    for (int i = 0; i < p.size; ++i) sum += word_to_float(batch[i].words[0]);
  }
  p.out[thread_index()] = sum;
}

}  // namespace

const std::vector<Named> traffic_kernels = {
    SE_NAMED(copies_vectors),       SE_NAMED(copies_from_the_second),
    SE_NAMED(copies_every_so_many), SE_NAMED(copies_so_many),
    SE_NAMED(copies_the_first),     SE_NAMED(touches_floats),
    SE_NAMED(touches_doubles),      SE_NAMED(touches_vectors),
    SE_NAMED(touches_halves),       SE_NAMED(copies_rows),
    SE_NAMED(loads_ahead),
};

}  // namespace se_kernels::cuda
