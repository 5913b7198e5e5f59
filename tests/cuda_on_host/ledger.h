// The bytes of global memory that were read and written, by sectors.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace se_kernels::cuda::host {

constexpr std::uintptr_t kSector = 32;

// asked: by requests, some more than once. once: whole sectors, each once, and not read if they
// were written before; so much crosses device memory where nothing comes twice.
struct Moved {
  std::uint64_t asked = 0, once = 0;
};

class Ledger {
 public:
  void add(std::uintptr_t address, std::uintptr_t bytes, bool writes);
  Moved of(std::uintptr_t address, std::uintptr_t bytes, bool writes) const;
  Moved all(bool writes) const;

 private:
  static constexpr std::uintptr_t kPage = 4096;
  struct Sector {
    std::uint64_t bytes[2];  // read, written
    bool written_first;
  };
  using Page = std::array<Sector, kPage / kSector>;
  static void add(Moved&, const Sector&, bool writes);
  std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages_;
  std::uintptr_t recent_at_ = 0;
  Page* recent_ = nullptr;
};

}  // namespace se_kernels::cuda::host
