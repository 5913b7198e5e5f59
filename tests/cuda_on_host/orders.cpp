#include "orders.h"

#include <cstdint>
#include <sstream>

#include "machine.h"

namespace se_kernels::cuda::host {

Orders orders;

bool Orders::look_up(const char* kind, const Thread& thread, const void* pc) {
  const Call* call = call_of(thread);
  const Place place{kind, pc, call ? call->pc : nullptr};
  if (listens_) used_.insert(place);
  return dropped_.count(place) == 0;
}

std::string Orders::take_used() {
  std::ostringstream lines;
  for (const Place& place : used_)
    lines << place.kind << ' ' << std::uintptr_t(place.pc) << ' ' << std::uintptr_t(place.outer)
          << '\n';
  used_.clear();
  return lines.str();
}

void Orders::drop(const std::string& lines) {
  dropped_.clear();
  std::istringstream stream(lines);
  std::string kind;
  std::uintptr_t pc, outer;
  while (stream >> kind >> pc >> outer)
    dropped_.insert(
        {kind, reinterpret_cast<const void*>(pc), reinterpret_cast<const void*>(outer)});
}

}  // namespace se_kernels::cuda::host
