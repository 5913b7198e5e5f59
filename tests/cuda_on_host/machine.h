// The stand-in's state: blocks of warps of threads, and who of them may run.
#pragma once

#include <cstdint>
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
enum Wait { at_turn, at_block_barrier, at_shuffle, kWaits };

struct Call;
struct Warp;

struct Thread : ThreadFacts {
  Warp* warp;
  Fiber* fiber;
  int slot;          // of all that may run at a time
  const Call* call;  // that it is in: accesses.h

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

struct Block : BlockFacts {
  explicit Block(const Shape& shape);

  SharedMemory memory;
  std::vector<Warp> warps;
  int alive, at_barrier;  // threads
};

class Launch {
 public:
  // seed 0: everything in order; else drawn. resident: blocks at a time, 0 for all.
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

 private:
  static void run_threads();
  void start_next(Block&);
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
  std::vector<std::unique_ptr<Block>> slots_;
  std::vector<int> order_;  // of the blocks
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

}  // namespace se_kernels::cuda::host
