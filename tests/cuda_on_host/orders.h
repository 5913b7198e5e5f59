// The places in the kernels that order accesses, and those that are left out of account: to see
// whether anything would be missed (tests/mutants.py).
#pragma once

#include <set>
#include <string>
#include <tuple>

#include "accesses.h"

namespace se_kernels::cuda::host {

class Orders {
 public:
  // Whether this one counts. `kind`: a literal.
  bool counts(const char* kind, const Thread& thread, const void* pc) {
    if (!listens_ && dropped_.empty()) return true;
    return look_up(kind, thread, pc);
  }
  void listen(bool on) { listens_ = on; }
  std::string take_used();  // a line each: kind, and the offsets of its call and the one around
  void drop(const std::string& lines);  // of the same form

 private:
  struct Place {
    std::string kind;
    const void *pc, *outer;
    bool operator<(const Place& other) const {
      return std::tie(pc, outer, kind) < std::tie(other.pc, other.outer, other.kind);
    }
  };
  bool look_up(const char* kind, const Thread&, const void* pc);

  bool listens_ = false;
  std::set<Place> used_, dropped_;
};

extern Orders orders;

}  // namespace se_kernels::cuda::host
