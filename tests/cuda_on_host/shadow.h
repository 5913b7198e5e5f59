// Of each four bytes of memory, the accesses that a later one has to be ordered after.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "clocks.h"

namespace se_kernels::cuda::host {

struct Call;

struct Access {
  enum Kind : std::uint8_t { plain, atomic };

  Agent agent;
  Epoch epoch;
  std::uint8_t bytes;  // of the four, a bit each
  Kind kind;
  bool writes;
  const void* pc;
  const Call* call;
};

class Shadow {
 public:
  // visit(earlier) for each access that conflicts with `now` in the `size` bytes at the address;
  // then `now` is remembered in place of those that it comes after. known(earlier): whether it is
  // ordered before `now`.
  template <class Visit, class Known>
  void access(std::uintptr_t address, std::size_t size, Access now, const Visit& visit,
              const Known& known);
  void forget();  // everything
  void forget(std::uintptr_t address, std::size_t size);

 private:
  struct Cell {
    std::uint32_t generation = 0;
    std::uint32_t most_reads = 16;  // they are looked through then
    std::vector<Access> writes, reads;
  };
  static constexpr std::uintptr_t kCell = 4, kPage = 4096;
  static constexpr std::size_t kMostPages = 2048;
  using Page = std::array<Cell, kPage / kCell>;

  Cell& cell_at(std::uintptr_t address);
  template <class Known>
  static void add_read(Cell&, const Access&, const Known&);
  static void add_write(Cell&, const Access&);
  static bool conflict(const Access& a, const Access& b) {
    return (a.bytes & b.bytes) != 0 && (a.writes || b.writes) &&
           !(a.kind == Access::atomic && b.kind == Access::atomic);
  }
  static bool same(const Access& a, const Access& b) {
    return a.agent == b.agent && a.bytes == b.bytes && a.kind == b.kind;
  }

  std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages_;
  struct {
    std::uintptr_t page = 0;
    Page* at = nullptr;
  } recent_[256];
  std::uint32_t generation_ = 1;
};

template <class Visit, class Known>
void Shadow::access(std::uintptr_t address, std::size_t size, Access now, const Visit& visit,
                    const Known& known) {
  for (const std::uintptr_t end = address + size; address < end;) {
    const std::uintptr_t first = address % kCell,
                         last = end - address < kCell - first ? first + (end - address) : kCell;
    now.bytes = std::uint8_t((1u << last) - (1u << first));
    Cell& cell = cell_at(address);
    for (const Access& earlier : cell.writes)
      if (conflict(earlier, now)) visit(earlier, address);
    if (now.writes) {
      for (const Access& earlier : cell.reads)
        if (conflict(earlier, now)) visit(earlier, address);
      add_write(cell, now);
    } else {
      add_read(cell, now, known);
    }
    address += last - first;
  }
}

// Each agent's last is enough, and one that `now` comes after is not needed beside it.
template <class Known>
void Shadow::add_read(Cell& cell, const Access& now, const Known& known) {
  auto& reads = cell.reads;
  for (std::size_t i = reads.size(), looks = 4; i > 0 && looks > 0; --i, --looks)
    if (same(reads[i - 1], now)) {
      reads[i - 1] = now;
      return;
    }
  if (reads.size() >= cell.most_reads) {
    std::size_t kept = 0;
    for (const Access& read : reads) {
      const bool covered = (read.bytes & ~now.bytes) == 0 &&
                           (now.kind == read.kind || now.kind == Access::plain) && known(read);
      if (!covered) reads[kept++] = read;
    }
    reads.resize(kept);
    cell.most_reads = std::uint32_t(kept < 8 ? 16 : 2 * kept);
  }
  reads.push_back(now);
}

}  // namespace se_kernels::cuda::host
