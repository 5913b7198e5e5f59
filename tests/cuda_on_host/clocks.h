// Vector clocks: what a thread knows to have happened before.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace se_kernels::cuda::host {

using Epoch = std::uint32_t;  // of an agent; 0: nothing of it

// A thread of the launch, or the bulk copies that one barrier counts.
struct Agent {
  std::uint32_t block, index;  // copies come after the block's threads
  bool operator==(const Agent& other) const { return block == other.block && index == other.index; }
};

// Of each agent, up to which of its epochs. Copies share a block's epochs until one of them
// changes.
class Clock {
 public:
  Epoch at(Agent agent) const;
  bool knows_any_of(std::uint32_t block) const;
  void raise(Agent agent, Epoch epoch);
  void join(const Clock& other);

 private:
  using Epochs = std::vector<Epoch>;
  std::vector<std::shared_ptr<Epochs>> blocks_;
};

using SharedClock = std::shared_ptr<const Clock>;

// before: what happened before. fenced: what of that has a proxy fence behind it, so that bulk
// copies may follow. Null: nothing.
struct Knowledge {
  SharedClock before, fenced;

  void join(const Knowledge& other);
};

// What several threads know, put together.
class Meeting {
 public:
  // `agent` comes: it knows `knowledge`, and of itself its epochs up to `epoch`; those up to
  // `fenced` have a proxy fence behind them.
  void add(const Knowledge& knowledge, Agent agent, Epoch epoch, Epoch fenced);
  void add(Agent agent, Epoch epoch) { add({}, agent, epoch, 0); }
  const Knowledge& result();

 private:
  void join(Clock& clock, const SharedClock& other, SharedClock& last);

  Clock before_, fenced_;
  bool any_fenced_ = false;
  SharedClock last_before_, last_fenced_;  // joined last: the next often knows the same
  bool changed_ = false;
  Knowledge result_;
};

}  // namespace se_kernels::cuda::host
