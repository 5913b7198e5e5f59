// Barriers of a block, shuffles.
#include "machine.h"

namespace se_kernels::cuda {

using namespace host;

namespace {

Block& block_here() { return *under_way->running->warp->block; }
std::string thread_here() { return name_of(*under_way->running); }

}  // namespace

void block_barrier() {
  Block& block = block_here();
  if (block.alive < block.threads)
    fail("divergent barrier: " + thread_here() + " is at a block_barrier, " +
         std::to_string(block.threads - block.alive) + " threads have returned");
  observe(&Observer::on_barrier_arrive, *under_way->running, __builtin_return_address(0));
  if (++block.at_barrier < block.threads) return under_way->wait(at_block_barrier);
  observe(&Observer::on_barrier_complete, block);
  block.at_barrier = 0;
  under_way->progress();
  under_way->wake(block, at_block_barrier);
}

namespace host {

// Two buffers: before a lane writes to one again, every lane has read what it wanted of it.
std::uint64_t exchange(std::uint64_t bits, int mask) {
  const Thread& thread = *under_way->running;
  Warp& warp = *thread.warp;
  if (mask < 0 || mask >= kWarp)
    fail(thread_here() + ": shuffle_xor: expected a mask from 0 to 31, got " +
         std::to_string(mask));
  auto& shuffled = warp.shuffled[warp.shuffles % 2];
  shuffled[thread.lane()] = bits;
  const std::uint32_t others = ~(std::uint32_t(1) << thread.lane());
  if (warp.waiting[at_shuffle] != others) {
    under_way->wait(at_shuffle);
  } else {
    ++warp.shuffles;
    observe(&Observer::on_shuffle, thread);
    under_way->progress();
    under_way->wake(warp, at_shuffle);
  }
  return shuffled[thread.lane() ^ std::uint32_t(mask)];
}

}  // namespace host
}  // namespace se_kernels::cuda
