// The traffic of launches: what docs/traffic.md counts.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "ledger.h"
#include "requests.h"

namespace se_kernels::cuda::host {

// Of some requests. units: 32-byte sectors of global memory, wavefronts of shared memory; least:
// the fewest for these bytes and lanes.
struct Count {
  std::uint64_t requests = 0, lanes = 0, bytes = 0, units = 0, least = 0;
  void add(const Count&);
};

// Of one request; what it asks of global memory goes into the ledger too.
Count count(const Request&, Ledger&);

class Traffic : public Observer {
 public:
  std::string json() const;  // a list of the launches, in their order
  Ledger ledger;             // of all of them

  void on_launch_begin(const Shape&) override;
  void on_block_begin(const Block&) override;
  void on_block_end(const Block&) override;
  void on_call(const Thread&, const void* pc) override;
  void on_return(const Thread&) override;
  void on_access(const Thread&, const void* address, unsigned bytes, bool writes,
                 const void* pc) override;
  void on_vector(const Thread&) override;
  void on_use(const Thread&) override;
  void on_counter(const Thread&, const std::uint32_t*, bool writes, Order, const void* pc) override;
  void on_shuffle(const Thread&) override;
  void on_barrier_arrive(const Thread&, const void* pc) override;
  void on_barrier_complete(const Block&) override;

 private:
  // What the lane is about to do, and bytes that it has loaded and not used.
  struct Lane {
    bool vector = false;
    unsigned under_way = 0;
  };
  struct Launched {
    Shape shape;
    Count vectors[2], global[2], shared[2];  // loads, stores; vectors are not in global
    std::uint64_t rounds = 0;                // of loads under way, of a warp
    std::uint64_t tickets = 0, atomics = 0, polls = 0, shuffles = 0, barriers = 0;
    std::map<std::pair<const Call*, const void*>, std::pair<Instruction, Count>> sites;
  };
  void add(const Request&);
  Launched& now() { return launches_.back(); }
  Lane& lane(const Thread& thread) { return lanes_[std::size_t(thread.slot)]; }

  std::vector<Launched> launches_;
  std::vector<Lane> lanes_;  // by slot
  Requests requests_{[](void* to, const Request& r) { static_cast<Traffic*>(to)->add(r); }, this};
};

}  // namespace se_kernels::cuda::host
