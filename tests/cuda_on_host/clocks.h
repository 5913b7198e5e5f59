// Vector clocks: what a thread knows to have happened before.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace se_kernels::cuda::host {

using Epoch = std::uint32_t;  // of an agent; 0: nothing of it

// A thread of the launch.
struct Agent {
  std::uint32_t block, index;
  bool operator==(const Agent& other) const { return block == other.block && index == other.index; }
};

// Of each agent, up to which of its epochs. Copies of a clock share a block's epochs until one of
// them changes.
class Clock {
 public:
  Epoch at(Agent agent) const;
  void raise(Agent agent, Epoch epoch);
  void join(const Clock& other);

 private:
  using Epochs = std::vector<Epoch>;
  std::vector<std::shared_ptr<Epochs>> blocks_;
};

using SharedClock = std::shared_ptr<const Clock>;  // null: nothing happened before

// The join of both; one of them, if the other is nothing.
SharedClock joined(const SharedClock& a, const SharedClock& b);

// What several threads know, put together.
class Meeting {
 public:
  // `agent` comes: it knows `known`, and of itself its epochs up to `epoch`.
  void add(const SharedClock& known, Agent agent, Epoch epoch);
  const SharedClock& result();

 private:
  Clock all_;
  SharedClock last_;  // joined last: the next often knows the same
  bool changed_ = false;
  SharedClock result_;
};

}  // namespace se_kernels::cuda::host
