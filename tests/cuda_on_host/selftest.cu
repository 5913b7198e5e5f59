// Kernels for tests/gpu/test_cuda_on_host.py: some are right, some misuse the machine in one way.
#undef NDEBUG
#include <cassert>
#include <stdexcept>
#include <string>

#include "selftest.h"

namespace se_kernels::cuda {
namespace {

// ---- right

// Each block has `size` numbers of `in`; its threads put theirs together, and out gets the sum.
SE_KERNEL(256, 1) block_sums(SE_PARAMETER Parameters p) {
  auto* scratch = reinterpret_cast<float*>(shared_memory());
  float sum = 0;
  for (int i = thread_index(); i < p.size; i += thread_count())
    sum += p.in[block_index() * p.size + i];
  for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (thread_index() % kWarp == 0) scratch[thread_index() / kWarp] = sum;
  block_barrier();
  float all = 0;
  for (int warp = 0; warp < thread_count() / kWarp; ++warp) all += scratch[warp];
  if (thread_index() == 0) p.out[block_index()] = all;
}

// Blocks take tickets until there are no more. The first half of the tickets writes; the second
// half waits for all of it, and reads. out gets the block of each ticket.
SE_KERNEL(64, 1) tickets(SE_PARAMETER Parameters p) {
  auto* ticket = reinterpret_cast<int*>(shared_memory());
  for (;;) {
    if (thread_index() == 0) *ticket = int(take(p.counters));
    block_barrier();
    const int mine = *ticket, half = p.size / 2;
    block_barrier();
    if (mine >= p.size) return;
    if (mine < half) {
      if (thread_index() == 0) {
        p.out[mine] = float(block_index());
        count_in(p.counters + 1);
      }
      continue;
    }
    if (thread_index() == 0) {
      while (int(read_count(p.counters + 1)) < half) pause();
      for (int i = 0; i < half; ++i)
        if (load_shared_result(p.out + i) < 0) p.counters[2] = 1;
      p.out[mine] = float(block_index());
    }
  }
}

// out: x as float16 and bfloat16 and back, in pairs and singly, of `size` numbers.
SE_KERNEL(64, 1) conversions(SE_PARAMETER Parameters p) {
  auto* words = reinterpret_cast<std::uint32_t*>(p.out);
  for (int i = thread_index(); i < p.size; i += thread_count()) {
    float16 half;
    bfloat16 brain;
    narrow(p.in[i], half);
    narrow(p.in[i], brain);
    words[i] = half.bits | std::uint32_t(brain.bits) << 16;
    p.out[p.size + i] = widen(half);
    p.out[2 * p.size + i] = widen(brain);
    float low, high;
    const float other = p.in[p.size - 1 - i];
    float16 other_half;
    narrow(other, other_half);
    const std::uint32_t pair = narrow_pair(p.in[i], other, half);
    widen_pair(pair, half, low, high);
    const bool right = pair == (half.bits | std::uint32_t(other_half.bits) << 16) &&
                       float_to_word(low) == float_to_word(widen(half)) &&
                       float_to_word(high) == float_to_word(widen(other_half));
    if (!right) p.counters[0] += 1;
  }
}

SE_KERNEL(64, 1) vectors(SE_PARAMETER Parameters p) {
  for (int i = 4 * thread_index(); i < p.size; i += 4 * thread_count()) {
    const Vector16 v = i % 8 == 0 ? load_keep(p.in + i, true) : load_drop(p.in + i, true);
    i % 8 == 0 ? store_keep(p.out + i, v) : store_stream(p.out + i, v);
  }
}

// What is in shared memory before anybody wrote there.
SE_KERNEL(64, 1) unwritten(SE_PARAMETER Parameters p) {
  const auto* shared = reinterpret_cast<const float*>(shared_memory());
  if (thread_index() == 0) p.out[block_index()] = shared[p.size - 1];
  block_barrier();
  reinterpret_cast<float*>(shared_memory())[thread_index()] = 1;
}

// A neighbour's number, without a barrier: there, or not there yet.
SE_KERNEL(64, 1) races(SE_PARAMETER Parameters p) {
  auto* numbers = reinterpret_cast<float*>(shared_memory());
  numbers[thread_index()] = 1;
  p.out[thread_index()] = numbers[(thread_index() + 1) % thread_count()];
}

SE_KERNEL(64, 1) switches(SE_PARAMETER Parameters p) {
  for (int i = 0; i < p.size; ++i) block_barrier();
}

// ---- wrong

SE_KERNEL(64, 1) waits_for_the_last_block(SE_PARAMETER Parameters p) {
  if (block_index() == block_count() - 1) {
    if (thread_index() == 0) count_in(p.counters);
  } else {
    if (thread_index() == 0)
      while (read_count(p.counters) == 0) pause();
    block_barrier();
  }
}

SE_KERNEL(64, 1) returns_before_a_barrier(SE_PARAMETER Parameters) {
  if (thread_index() == 5) return;
  block_barrier();
}

SE_KERNEL(64, 1) waits_at_different_places(SE_PARAMETER Parameters) {
  if (thread_index() % 2 == 0)
    block_barrier();
  else
    shuffle_xor(1.f, 1);
}

SE_KERNEL(64, 1) shuffles_without_a_lane(SE_PARAMETER Parameters p) {
  if (thread_index() != 33) p.out[thread_index()] = shuffle_xor(1.f, 1);
}

SE_KERNEL(64, 1) shuffles_beyond_the_warp(SE_PARAMETER Parameters p) {
  p.out[thread_index()] = shuffle_xor(1.f, kWarp);
}

SE_KERNEL(64, 1) loads_misaligned(SE_PARAMETER Parameters p) { load_keep(p.in + 1, true); }
SE_KERNEL(64, 1) stores_misaligned(SE_PARAMETER Parameters p) { store_stream(p.out + 2, {}); }

SE_KERNEL(64, 1) writes_past_its_shared_memory(SE_PARAMETER Parameters p) {
  if (thread_index() == 0) shared_memory()[p.size] = 0;
}

SE_KERNEL(64, 1) throws(SE_PARAMETER Parameters) {
  if (thread_index() == 7) throw std::runtime_error("seven");
}

SE_KERNEL(64, 1) asserts(SE_PARAMETER Parameters) { assert(thread_index() != 9); }

const std::vector<Named> kernels = {
    SE_NAMED(block_sums),
    SE_NAMED(tickets),
    SE_NAMED(conversions),
    SE_NAMED(vectors),
    SE_NAMED(unwritten),
    SE_NAMED(races),
    SE_NAMED(switches),
    SE_NAMED(waits_for_the_last_block),
    SE_NAMED(returns_before_a_barrier),
    SE_NAMED(waits_at_different_places),
    SE_NAMED(shuffles_without_a_lane),
    SE_NAMED(shuffles_beyond_the_warp),
    SE_NAMED(loads_misaligned),
    SE_NAMED(stores_misaligned),
    SE_NAMED(writes_past_its_shared_memory),
    SE_NAMED(throws),
    SE_NAMED(asserts),
};

}  // namespace
}  // namespace se_kernels::cuda

// Launches a kernel by its name; the launch's error, cut to the size, or nothing.
extern "C" __attribute__((visibility("default"))) void se_selftest(
    const char* name, int blocks, int threads, int shared_bytes, const float* in, float* out,
    std::uint32_t* counters, int size, char* error, std::size_t error_size) {
  using namespace se_kernels::cuda;
  std::string what = std::string("no kernel ") + name;
  for (const auto* all : {&kernels, &race_kernels, &traffic_kernels})
    for (const Named& named : *all)
      if (std::string(name) == named.name) try {
          what.clear();
          launch<Parameters>(named.kernel, {in, out, counters, size},
                             {name, blocks, threads, shared_bytes}, nullptr);
        } catch (const std::exception& thrown) {
          what = thrown.what();
        }
  if (error_size > 0) error[what.copy(error, error_size - 1)] = '\0';
}
