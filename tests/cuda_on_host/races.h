// Races, by PTX's causality order and whatever order the threads were drawn in: two accesses of one
// place, one of them a write, of which neither happens before the other.
//
//   block_barrier         joins what the block's threads know
//   shuffle, take         order nothing
//   add_release           releases; count_in acquires too, read_count acquires
//   cluster_arrive, _wait release, acquire
//   wait_arrivals         learns what those knew who called expect_bytes, and the copies
//   bulk_load             an agent of its own in the async proxy: generic accesses before it, reads
//                         too, need a proxy fence behind them
//   load_remote           needs its block to have begun, and not to have ended
#pragma once

#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "machine.h"
#include "shadow.h"

namespace se_kernels::cuda::host {

class Races : public Observer {
 public:
  enum Judgement { ignore, fail_launch, note };

  void judge(Judgement judgement) { judgement_ = judgement; }
  std::string take_noted();  // a line each: where the two accesses are, as offsets, and how often

  void on_launch_begin(const Shape&) override;
  void on_block_begin(const Block&) override;
  void on_thread_end(const Thread&) override;
  void on_block_end(const Block&) override;
  void on_access(const Thread&, const void*, unsigned, bool, const void*) override;
  void on_remote_load(const Thread&, const Block&, const void*, const void*) override;
  void on_counter(const Thread&, const std::uint32_t*, bool, Order, const void*) override;
  void on_barrier_arrive(const Thread&, const void*) override;
  void on_barrier_complete(const Block&) override;
  void on_cluster_arrive(const Thread&, const void*) override;
  void on_cluster_complete(const Cluster&) override;
  void on_cluster_wait(const Thread&, const void*) override;
  void on_arrivals_start(const Thread&, const std::uint64_t*, const void*) override;
  void on_expect_bytes(const Thread&, const std::uint64_t*, const void*) override;
  void on_bulk_load(const Thread&, const Copy&, const void*) override;
  void on_phase_complete(const Block&, const std::uint64_t*) override;
  void on_wait_arrivals(const Thread&, const std::uint64_t*, const void*) override;
  void on_proxy_fence(const Thread&, const void*) override;

 private:
  struct State {  // of a thread
    Agent agent{};
    Epoch epoch = 1, fenced = 0;  // its accesses up to fenced have a proxy fence behind them
    Knowledge knows;
    bool joins = true;  // the barrier that it is at
  };
  struct Barrier {  // of a cluster, or that counts bytes
    Meeting coming;
    Knowledge passed;
    Agent copies{};  // of the latter
    Epoch phase = 1;
  };

  State& state(const Thread& thread) { return states_[std::size_t(thread.slot)]; }
  Access access_by(const Thread&, bool writes, Access::Kind, const void* pc);
  void access(const Thread&, const void* address, std::size_t bytes, const Access&);
  void release(State&, Meeting&);
  void found(const Access& earlier, const Access& now, std::uintptr_t address, bool only_unfenced);
  void found(const Access& earlier, const Access& now, const std::string& what);
  std::string who(const Access&) const;
  std::string place(std::uintptr_t address) const;

  Judgement judgement_ = fail_launch;
  Shadow shadow_;
  std::vector<State> states_;  // by slot
  std::map<std::uintptr_t, const Block*> shared_;
  std::unordered_map<const std::uint32_t*, Meeting> counters_;
  std::unordered_map<const Cluster*, Barrier> clusters_;
  std::unordered_map<const std::uint64_t*, Barrier> arrivals_;
  std::vector<std::uint32_t> copiers_;  // of each block, barriers that count
  std::unordered_map<const Block*, std::vector<Access>> remote_;  // loads, none known to the block
  std::map<std::pair<const void*, const void*>, int> noted_;
  std::uint32_t threads_ = 0;
};

}  // namespace se_kernels::cuda::host
