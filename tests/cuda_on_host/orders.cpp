#include "orders.h"

#include <sstream>

#include "machine.h"
#include "source_lines.h"

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
    lines << place.kind << ' ' << offset_of(place.pc) << ' ' << offset_of(place.outer) << '\n';
  used_.clear();
  return lines.str();
}

void Orders::drop(const std::string& lines) {
  dropped_.clear();
  std::istringstream stream(lines);
  std::string kind;
  std::uintptr_t pc, outer;
  while (stream >> kind >> pc >> outer) dropped_.insert({kind, pc_at(pc), pc_at(outer)});
}

}  // namespace se_kernels::cuda::host
