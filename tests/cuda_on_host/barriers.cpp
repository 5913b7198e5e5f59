// Barriers of a block and of a cluster, shuffles, and the memory of a cluster's other blocks.
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
  ++block.barriers;
  under_way->progress();
  under_way->wake(block, at_block_barrier);
}

void cluster_arrive() {
  Thread& thread = *under_way->running;
  Cluster& cluster = *block_here().cluster_of;
  if (thread.arrived) fail(thread_here() + ": cluster_arrive twice, without a cluster_wait");
  thread.arrived = true;
  thread.cluster_phase = cluster.phase;
  ++cluster.arrived;
  observe(&Observer::on_cluster_arrive, thread, __builtin_return_address(0));
  release_if_all_arrived(cluster);
}

void cluster_wait() {
  Thread& thread = *under_way->running;
  if (!thread.arrived) fail(thread_here() + ": cluster_wait without a cluster_arrive");
  if (block_here().cluster_of->phase == thread.cluster_phase) under_way->wait(at_cluster_wait);
  thread.arrived = false;
  observe(&Observer::on_cluster_wait, thread, __builtin_return_address(0));
}

namespace host {

// Those that have returned are not waited for, as on a GPU.
void release_if_all_arrived(Cluster& cluster) {
  if (cluster.arrived < cluster.alive) return;
  cluster.arrived = 0;
  ++cluster.phase;
  observe(&Observer::on_cluster_complete, cluster);
  under_way->progress();
  for (Block& block : cluster.blocks) {
    ++block.barriers;
    under_way->wake(block, at_cluster_wait);
  }
}

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

const float* remote(const float* p, int rank) {
  const Block& block = block_here();
  const auto fault = [&](const std::string& what) {
    fail(thread_here() + ": load_remote of rank " + std::to_string(rank) + ": " + what);
  };
  if (rank < 0 || rank >= block.cluster)
    fault("the cluster has " + std::to_string(block.cluster) + " blocks");
  if (!block.memory.holds(p, sizeof(float)))
    fault("the address is not of this block's shared memory");
  const std::ptrdiff_t at = reinterpret_cast<const unsigned char*>(p) - block.shared;
  if (at % std::ptrdiff_t(alignof(float)) != 0) fault("the address is not a multiple of 4 bytes");
  const Block& other = block.cluster_of->blocks[std::size_t(rank)];
  if (!other.begun) fault("that block has not begun");
  if (other.alive == 0) fault("that block has ended");
  observe(&Observer::on_remote_load, *under_way->running, other, other.shared + at,
          __builtin_return_address(0));
  return reinterpret_cast<const float*>(other.shared + at);
}

}  // namespace host
}  // namespace se_kernels::cuda
