// Kernels for tests/gpu/test_cuda_races.py, of 64 threads a block: `size` says how much of what
// orders their accesses is there.
#include "selftest.h"

namespace se_kernels::cuda {
namespace {

SE_DEVICE float* numbers() { return reinterpret_cast<float*>(shared_memory() + 64); }

// ---- a block's barrier, and what is none
// size 0: no barrier; 1: none between the reads and what is written over them; 2: both.
SE_KERNEL(64, 1) neighbours(SE_PARAMETER Parameters p) {
  const int i = thread_index(), next = (i + 1) % thread_count();
  numbers()[i] = 1;
  if (p.size >= 1) block_barrier();  // before they are read
  p.out[i] = numbers()[next];
  if (p.size >= 2) block_barrier();  // before they are written
  numbers()[i] = 2;
}

// Two barriers between the accesses, of which either would do, and one that orders nothing.
SE_KERNEL(64, 1) too_many_barriers(SE_PARAMETER Parameters p) {
  numbers()[thread_index()] = 1;
  block_barrier();  // the first
  block_barrier();  // the second
  p.out[thread_index()] = numbers()[0];
  block_barrier();  // the third
}

SE_DEVICE void put(float* to) { *to = 1; }

// size 0: a shuffle between a lane's write and another's read; 1: a barrier too.
SE_KERNEL(64, 1) lanes(SE_PARAMETER Parameters p) {
  if (thread_index() == 0) put(numbers());
  shuffle_xor(1.f, 1);
  if (p.size >= 1) block_barrier();
  if (thread_index() == 1) p.out[0] = numbers()[0];
}

// Threads write bytes of one word. size 0: the first two the same one; 1: each its own.
SE_KERNEL(64, 1) bytes(SE_PARAMETER Parameters p) {
  const int i = thread_index();
  if (i < 4) shared_memory()[p.size == 0 ? i / 2 : i] = 1;
}

// ---- counters: block 0 writes, block 1 reads
// size 0: relaxed on both sides; 1: the reader acquires; 2: the writer releases; 3: both.
SE_KERNEL(64, 1) counted(SE_PARAMETER Parameters p) {
  if (thread_index() != 0) return;
  if (block_index() == 0) {
    p.out[0] = 1;
    if (p.size & 2)
      add_release(p.counters);
    else
      take(p.counters);
  } else {
    if (p.size & 1)
      while (read_count(p.counters) == 0) pause();
    else
      while (take(p.counters) == 0) pause();
    p.out[1] = load_shared_result(p.out);
  }
}

// The last thread writes and reads, the first counts. size 0: no barrier; 1: before it is counted;
// 2: after the wait; 3: both.
SE_KERNEL(64, 1) counted_for_all(SE_PARAMETER Parameters p) {
  const bool first = thread_index() == 0, last = thread_index() == thread_count() - 1;
  if (block_index() == 0) {
    if (last) p.out[0] = 1;
    if (p.size & 1) block_barrier();
    if (first) count_in(p.counters);
  } else {
    if (first)
      while (read_count(p.counters) == 0) pause();
    if (p.size & 2) block_barrier();
    if (last) p.out[1] = load_shared_result(p.out);
  }
}

// The last block to be counted in reads what all wrote. size 0: counted by take; 1: by count_in.
SE_KERNEL(64, 1) last_to_come(SE_PARAMETER Parameters p) {
  if (thread_index() != 0) return;
  p.out[block_index()] = 1;
  const auto before = p.size == 0 ? take(p.counters) : count_in(p.counters);
  float sum = 0;
  if (int(before) == block_count() - 1)
    for (int i = 0; i < block_count(); ++i) sum += load_shared_result(p.out + i);
  if (sum > 0) p.out[block_count()] = sum;
}

// size 0: a counter is read as a number; 1: as a counter.
SE_KERNEL(64, 1) counter_read(SE_PARAMETER Parameters p) {
  if (thread_index() == 0) count_in(p.counters);
  if (thread_index() == 1) p.out[0] = float(p.size == 0 ? *p.counters : read_count(p.counters));
}

}  // namespace

const std::vector<Named> race_kernels = {
    SE_NAMED(neighbours),   SE_NAMED(too_many_barriers), SE_NAMED(lanes),
    SE_NAMED(bytes),        SE_NAMED(counted),           SE_NAMED(counted_for_all),
    SE_NAMED(last_to_come), SE_NAMED(counter_read),
};

}  // namespace se_kernels::cuda
