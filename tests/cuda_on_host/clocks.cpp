#include "clocks.h"

#include <algorithm>

namespace se_kernels::cuda::host {

SharedClock joined(const SharedClock& a, const SharedClock& b) {
  // the threads of a block join the same two, one after another
  static thread_local SharedClock last_a, last_b, last;
  if (!b || a == b) return a;
  if (!a) return b;
  if (a == last_a && b == last_b) return last;
  auto both = std::make_shared<Clock>(*a);
  both->join(*b);
  last_a = a, last_b = b, last = std::move(both);
  return last;
}

Epoch Clock::at(Agent agent) const {
  if (agent.block >= blocks_.size() || !blocks_[agent.block]) return 0;
  const Epochs& epochs = *blocks_[agent.block];
  return agent.index < epochs.size() ? epochs[agent.index] : 0;
}

void Clock::raise(Agent agent, Epoch epoch) {
  if (agent.block >= blocks_.size()) blocks_.resize(agent.block + 1);
  auto& epochs = blocks_[agent.block];
  if (!epochs)
    epochs = std::make_shared<Epochs>();
  else if (epochs.use_count() > 1)
    epochs = std::make_shared<Epochs>(*epochs);
  if (agent.index >= epochs->size()) epochs->resize(agent.index + 1);
  (*epochs)[agent.index] = std::max((*epochs)[agent.index], epoch);
}

void Clock::join(const Clock& other) {
  if (blocks_.size() < other.blocks_.size()) blocks_.resize(other.blocks_.size());
  for (std::size_t block = 0; block < other.blocks_.size(); ++block) {
    auto& mine = blocks_[block];
    const auto& theirs = other.blocks_[block];
    if (!theirs || mine == theirs) continue;
    if (!mine) {
      mine = theirs;
      continue;
    }
    const std::size_t size = theirs->size();
    std::size_t i = 0;
    while (i < std::min(size, mine->size()) && (*mine)[i] >= (*theirs)[i]) ++i;
    if (i == size) continue;  // all of it is known
    auto both = std::make_shared<Epochs>(*mine);
    both->resize(std::max(size, both->size()));
    for (; i < size; ++i) (*both)[i] = std::max((*both)[i], (*theirs)[i]);
    mine = std::move(both);
  }
}

void Meeting::add(const SharedClock& known, Agent agent, Epoch epoch) {
  if (known && known != last_) all_.join(*known), last_ = known;
  all_.raise(agent, epoch);
  changed_ = true;
}

const SharedClock& Meeting::result() {
  if (changed_) result_ = std::make_shared<Clock>(all_);
  changed_ = false;
  return result_;
}

}  // namespace se_kernels::cuda::host
