// Races, by PTX's causality order and whatever order the threads were drawn in: two accesses of one
// place, one of them a write, of which neither happens before the other.
//
//   block_barrier         joins what the block's threads know
//   shuffle, take         order nothing
//   add_release           releases; count_in acquires too, read_count acquires
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
  void on_access(const Thread&, const void*, unsigned, bool, const void*) override;
  void on_counter(const Thread&, const std::uint32_t*, bool, Order, const void*) override;
  void on_barrier_arrive(const Thread&, const void*) override;
  void on_barrier_complete(const Block&) override;

 private:
  struct State {  // of a thread
    Agent agent{};
    Epoch epoch = 1;
    SharedClock knows;
    bool joins = true;  // the barrier that it is at
  };

  State& state(const Thread& thread) { return states_[std::size_t(thread.slot)]; }
  Access access_by(const Thread&, bool writes, Access::Kind, const void* pc);
  void access(const Thread&, const void* address, std::size_t bytes, const Access&);
  void release(State&, Meeting&);
  void found(const Access& earlier, const Access& now, std::uintptr_t address);
  std::string place(std::uintptr_t address) const;

  Judgement judgement_ = fail_launch;
  Shadow shadow_;
  std::vector<State> states_;  // by slot
  std::map<std::uintptr_t, const Block*> shared_;
  std::unordered_map<const std::uint32_t*, Meeting> counters_;
  std::map<std::pair<const void*, const void*>, int> noted_;
};

}  // namespace se_kernels::cuda::host
