// The stand-in's state: clusters of blocks of warps of threads, and who of them may run.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_on_host.h"
#include "fiber.h"
#include "observer.h"
#include "shared_memory.h"

namespace se_kernels::cuda::host {

// What a thread waits for.
enum Wait { at_turn, at_block_barrier, at_cluster_wait, at_shuffle, at_wait_arrivals, kWaits };

struct Call;
struct Warp;

struct Thread : ThreadFacts {
  Warp* warp;
  Fiber* fiber;
  bool arrived;            // at the cluster's barrier, and has not waited
  unsigned cluster_phase;  // at its arrival
  int slot;                // of all that may run at a time
  const Call* call;        // that it is in: accesses.h

  std::uint32_t lane() const { return std::uint32_t(index % kWarp); }
};

struct Warp {
  Block* block;
  Thread lanes[kWarp];
  std::uint32_t ready;            // a bit for each lane that may run
  std::uint32_t waiting[kWaits];  // and for each that waits
  bool queued;                    // to be drawn
  std::uint64_t shuffled[2][kWarp];
  unsigned shuffles;
};

// A barrier that counts the bytes of bulk copies, phase by phase.
struct Arrivals {
  int starter;             // the thread
  unsigned barriers;       // that the block had passed then
  unsigned phase = 0;      // under way
  bool expecting = false;  // expect_bytes was called in this phase
  std::uint64_t expected = 0, issued = 0, come = 0;
};

struct Block : BlockFacts {
  Block(const Shape& shape, Cluster* cluster, int rank);

  Cluster* cluster_of;
  SharedMemory memory;
  std::vector<Warp> warps;
  bool begun;
  int alive, at_barrier;  // threads
  unsigned barriers;      // passed, those of the cluster too
  std::map<const std::uint64_t*, Arrivals> arrivals;
};

struct Cluster {
  std::vector<Block> blocks;
  int alive, arrived;  // threads
  unsigned phase;
};

struct Copy {
  Block* block;
  const std::uint64_t* arrivals;
  unsigned char* to;
  const void* from;
  std::uint32_t bytes;
};

class Launch {
 public:
  // seed 0: everything in order, and copies as late as can be; else drawn.
  // resident: clusters at a time, 0 for all.
  Launch(const Shape&, void (*body)(const void*), const void* arguments, unsigned seed,
         int resident);
  ~Launch();
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  void run();                                  // throws std::runtime_error
  [[noreturn]] void fail(const std::string&);  // by the running thread

  void wait(Wait);  // the running thread, until it is woken
  void wake(Warp&, Wait);
  void wake(Block&, Wait);
  void ask();
  void interrupt();
  void progress() { in_vain_ = 0; }
  std::size_t threads() const { return fibers_.size(); }  // that may run at a time

  Thread* running = nullptr;
  std::vector<Copy> copies;  // under way

 private:
  static void run_threads();
  void start_next(Cluster&);
  void end_thread();
  void go_on();
  Thread* draw();
  std::size_t any_of(std::size_t count);
  std::string deadlock() const;

  const Shape& shape_;
  void (*const body_)(const void*);
  const void* const arguments_;
  const bool in_order_;
  std::mt19937 random_;
  std::size_t copy_chance_ = 1;  // a copy is made at one draw in so many
  std::vector<std::unique_ptr<Cluster>> slots_;
  std::vector<int> order_;  // of the clusters
  std::size_t started_ = 0, ended_ = 0;
  std::vector<Warp*> queue_;
  Warp* warp_ = nullptr;  // drawn: its ready lanes run before another's
  bool upwards_ = true;   // the lane with the smallest index first
  std::uint64_t in_vain_ = 0;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  Fiber main_;
  std::string error_;
};

extern Launch* under_way;

std::string name_of(const Block&);
std::string name_of(const Thread&);

// barriers.cpp
void release_if_all_arrived(Cluster&);

// bulk_copies.cpp
void make(const Copy&);
void check_copies_ended(const Block&);
std::string outstanding(const Block&);  // of whom more bytes are expected

}  // namespace se_kernels::cuda::host
