#include "shadow.h"

#include <algorithm>

namespace se_kernels::cuda::host {

Shadow::Cell& Shadow::cell_at(std::uintptr_t address) {
  const std::uintptr_t page = address / kPage;
  auto& recent = recent_[page % std::size(recent_)];
  if (recent.page != page || !recent.at) {
    auto& at = pages_[page];
    if (!at) at = std::make_unique<Page>();
    recent = {page, at.get()};
  }
  Cell& cell = (*recent.at)[address % kPage / kCell];
  if (cell.generation != generation_) {
    cell.generation = generation_;
    cell.writes.clear(), cell.reads.clear();
  }
  return cell;
}

void Shadow::forget() {
  ++generation_;
  if (pages_.size() <= kMostPages) return;
  pages_.clear();
  for (auto& recent : recent_) recent = {};
}

void Shadow::forget(std::uintptr_t address, std::size_t size) {
  for (std::uintptr_t at = address; at < address + size; at += kCell) {
    Cell& cell = cell_at(at);
    cell.writes.clear(), cell.reads.clear();
  }
}

// An atomic conflicts with less than what came before it, so that stays beside it.
void Shadow::add_write(Cell& cell, const Access& now) {
  auto& writes = cell.writes;
  if (now.kind == Access::atomic) {
    const auto at = std::find_if(writes.begin(), writes.end(),
                                 [&](const Access& write) { return same(write, now); });
    if (at != writes.end())
      *at = now;
    else
      writes.push_back(now);
    return;
  }
  const auto without = [&](std::vector<Access>& accesses) {
    std::size_t kept = 0;
    for (Access access : accesses) {
      access.bytes &= std::uint8_t(~now.bytes);
      if (access.bytes != 0) accesses[kept++] = access;
    }
    accesses.resize(kept);
  };
  without(writes), without(cell.reads);
  writes.push_back(now);
}

}  // namespace se_kernels::cuda::host
