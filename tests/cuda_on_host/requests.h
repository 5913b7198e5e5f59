// What a warp asks of memory at once, put together from what its lanes do one after the other.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "machine.h"

namespace se_kernels::cuda::host {

struct Call;

enum class Space { global, shared };

// Where a lane reads or writes. `call`: that it is in; begins: nothing was under way before it.
struct Instruction {
  const Call* call;
  const void* pc;
  Space space;
  bool writes, vector, begins;  // vector: by load_keep, load_drop, store_keep or store_stream
  unsigned bytes;               // of each lane
};

// By the lanes of a warp that have a bit.
struct Request : Instruction {
  std::uint32_t lanes;
  std::uintptr_t addresses[kWarp];
};

// On a GPU the lanes of a warp that are at one instruction run it together. Here each runs alone,
// so their accesses are matched: the k-th at a pc in a call with the k-th there of the others, and
// the k-th call from a pc in the same way. All counting begins anew at a barrier of the block.
class Requests {
 public:
  using Sink = void (*)(void* to, const Request&);
  Requests(Sink sink, void* to) : sink_(sink), to_(to) {}

  void begin_launch(std::size_t threads);  // that may run at a time
  void begin_block(const Block&);
  void end_block(const Block&);     // its requests are complete
  void pass_barrier(const Block&);  // the same

  void enter(const Thread&, const void* pc);
  void leave(const Thread&);
  void add(const Thread&, const Instruction&, const void* address);

 private:
  struct Frame {
    std::uint64_t key;  // the same in all lanes that are in the same call
    const void* pc;
    std::vector<std::pair<const void*, std::uint32_t>> counts;  // so far, at each pc
    std::size_t last = 0;                                       // of them, looked for
    std::uint32_t count(const void* at);
  };
  struct Lane {
    std::vector<Frame> frames;  // some are spare
    std::size_t depth = 1;
    Frame& frame() { return frames[depth - 1]; }
  };
  using Open = std::unordered_map<std::uint64_t, Request>;

  void complete(const Block&);

  Sink sink_;
  void* to_;
  std::vector<Lane> lanes_;  // by slot
  std::vector<Open> open_;   // by warp
};

}  // namespace se_kernels::cuda::host
