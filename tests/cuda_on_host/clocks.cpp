#include "clocks.h"

#include <algorithm>

namespace se_kernels::cuda::host {
namespace {

// The join of both; one of them, where the other is nothing.
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

}  // namespace

Epoch Clock::at(Agent agent) const {
  if (!knows_any_of(agent.block)) return 0;
  const Epochs& epochs = *blocks_[agent.block];
  return agent.index < epochs.size() ? epochs[agent.index] : 0;
}

bool Clock::knows_any_of(std::uint32_t block) const {
  return block < blocks_.size() && blocks_[block];
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

void Knowledge::join(const Knowledge& other) {
  before = joined(before, other.before);
  fenced = joined(fenced, other.fenced);
}

void Meeting::join(Clock& clock, const SharedClock& other, SharedClock& last) {
  if (!other || other == last) return;
  clock.join(*other);
  last = other;
}

void Meeting::add(const Knowledge& knowledge, Agent agent, Epoch epoch, Epoch fenced) {
  join(before_, knowledge.before, last_before_);
  before_.raise(agent, epoch);
  join(fenced_, knowledge.fenced, last_fenced_);
  if (fenced > 0) fenced_.raise(agent, fenced);
  any_fenced_ |= fenced > 0 || knowledge.fenced;
  changed_ = true;
}

const Knowledge& Meeting::result() {
  if (changed_) {
    result_.before = std::make_shared<Clock>(before_);
    if (any_fenced_) result_.fenced = std::make_shared<Clock>(fenced_);
    changed_ = false;
  }
  return result_;
}

}  // namespace se_kernels::cuda::host
