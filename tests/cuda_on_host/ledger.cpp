#include "ledger.h"

#include <algorithm>

namespace se_kernels::cuda::host {

void Ledger::add(std::uintptr_t address, std::uintptr_t bytes, bool writes) {
  for (const std::uintptr_t end = address + bytes; address < end;) {
    const std::uintptr_t page = address / kPage, next = (address / kSector + 1) * kSector,
                         here = std::min(end, next) - address;
    if (!recent_ || recent_at_ != page) {
      auto& at = pages_[page];
      if (!at) at = std::make_unique<Page>();
      recent_at_ = page, recent_ = at.get();
    }
    Sector& sector = (*recent_)[address % kPage / kSector];
    sector.written_first |= writes && sector.bytes[0] == 0;
    sector.bytes[writes] += here;
    address += here;
  }
}

void Ledger::add(Moved& moved, const Sector& sector, bool writes) {
  const bool crosses = sector.bytes[writes] > 0 && (writes || !sector.written_first);
  moved.asked += sector.bytes[writes], moved.once += crosses ? kSector : 0;
}

Moved Ledger::of(std::uintptr_t address, std::uintptr_t bytes, bool writes) const {
  Moved moved;
  for (std::uintptr_t at = address / kSector * kSector; at < address + bytes; at += kSector) {
    const auto page = pages_.find(at / kPage);
    if (page != pages_.end()) add(moved, (*page->second)[at % kPage / kSector], writes);
  }
  return moved;
}

Moved Ledger::all(bool writes) const {
  Moved moved;
  for (const auto& [at, page] : pages_)
    for (const Sector& sector : *page) add(moved, sector, writes);
  return moved;
}

}  // namespace se_kernels::cuda::host
