// A launch: which thread runs next, which block starts, and how it ends.
#include <algorithm>
#include <exception>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "machine.h"

namespace se_kernels::cuda::host {

const ThreadFacts* here = nullptr;
Launch* under_way = nullptr;

namespace {

constexpr int kMostThreads = 16384;    // at a time: each has a stack
constexpr std::uint64_t kInVain = 20;  // questions for each thread, with nothing else happening

std::vector<std::unique_ptr<Fiber>> spare_fibers;

std::uint32_t bit(std::uint32_t lane) { return std::uint32_t(1) << lane; }

}  // namespace

std::vector<Observer*>& observers() {
  static std::vector<Observer*> all;
  return all;
}

std::string name_of(const Block& block) { return "block " + std::to_string(block.index); }
std::string name_of(const Thread& thread) {
  return "thread " + std::to_string(thread.index) + " of " + name_of(*thread.warp->block);
}

void fail(const std::string& what) {
  if (!under_way) throw std::runtime_error(what);
  under_way->fail(what);
}

void ask() { under_way->ask(); }
void interrupt() { under_way->interrupt(); }

Block::Block(const Shape& shape)
    : BlockFacts{0, shape.blocks, shape.threads, nullptr},
      memory(shape.shared_bytes),
      warps(std::size_t(shape.threads / kWarp)) {
  shared = memory.data();
}

Launch::Launch(const Shape& shape, void (*body)(const void*), const void* arguments, unsigned seed,
               int resident)
    : shape_(shape), body_(body), arguments_(arguments), in_order_(seed == 0), random_(seed) {
  const int most = std::max(1, kMostThreads / shape.threads);
  order_.resize(std::size_t(shape.blocks));
  std::iota(order_.begin(), order_.end(), 0);
  if (!in_order_) std::shuffle(order_.begin(), order_.end(), random_);

  for (int slot = std::min({resident > 0 ? resident : shape.blocks, shape.blocks, most}); slot > 0;
       --slot) {
    slots_.push_back(std::make_unique<Block>(shape));
    Block& block = *slots_.back();
    for (int i = 0; i < shape.threads; ++i) {
      Warp& warp = block.warps[std::size_t(i / kWarp)];
      warp.block = &block;
      if (spare_fibers.empty()) spare_fibers.push_back(std::make_unique<Fiber>(run_threads));
      fibers_.push_back(std::move(spare_fibers.back()));
      spare_fibers.pop_back();
      warp.lanes[i % kWarp] = {
          {i, &block}, &warp, fibers_.back().get(), int(fibers_.size()) - 1, nullptr};
    }
  }
  under_way = this;
}

Launch::~Launch() {
  under_way = nullptr;
  here = nullptr;
  if (!error_.empty()) return;  // the fibers were left in mid-run: they go
  std::move(fibers_.rbegin(), fibers_.rend(), std::back_inserter(spare_fibers));
}

void Launch::run() {
  observe(&Observer::on_launch_begin, shape_);
  for (auto& block : slots_) start_next(*block);
  running = draw();
  here = running;
  main_.switch_to(*running->fiber);
  if (!error_.empty()) throw std::runtime_error(describe(shape_) + ": " + error_);
  observe(&Observer::on_launch_end);
}

void Launch::fail(const std::string& what) {
  error_ = what;
  running->fiber->switch_to(main_);
  std::terminate();  // nobody switches back
}

void Launch::start_next(Block& block) {
  block.index = order_[started_++];
  block.memory.poison();
  block.alive = shape_.threads;
  block.at_barrier = 0;
  for (Warp& warp : block.warps) {
    for (Thread& thread : warp.lanes) thread.call = nullptr;
    std::fill(std::begin(warp.waiting), std::end(warp.waiting), 0);
    warp.shuffles = 0;
    warp.ready = ~std::uint32_t(0);
    warp.queued = true;
    queue_.push_back(&warp);
  }
  observe(&Observer::on_block_begin, block);
}

// What every fiber runs: one thread after another.
void Launch::run_threads() {
  for (;;) {
    std::string thrown;
    try {
      under_way->body_(under_way->arguments_);
    } catch (const std::exception& error) {
      thrown = error.what();
    } catch (...) {
      thrown = "something unknown";
    }
    if (!thrown.empty()) under_way->fail(name_of(*under_way->running) + " threw: " + thrown);
    under_way->end_thread();
  }
}

void Launch::end_thread() {
  const Thread& thread = *running;
  Warp& warp = *thread.warp;
  Block& block = *warp.block;
  progress();
  if (block.at_barrier > 0)
    fail("divergent barrier: " + name_of(thread) + " has returned, " +
         std::to_string(block.at_barrier) + " threads wait at a block_barrier");
  if (warp.waiting[at_shuffle] != 0)
    fail("divergent shuffle: " + name_of(thread) + " has returned, others wait at a shuffle_xor");
  if (--block.alive == 0) {
    if (!block.memory.intact()) fail(name_of(block) + " wrote past its shared memory");
    observe(&Observer::on_block_end, block);
    ++ended_;
    warp_ = nullptr;
    if (started_ < order_.size()) start_next(block);
  }
  go_on();
}

// Of a thread that can only ask again: all that may run come first.
void Launch::ask() {
  ++in_vain_;
  wait(at_turn);
}

// Beside what other blocks see: they come before the rest of this warp, or do not.
void Launch::interrupt() {
  in_vain_ = 0;
  if (in_order_ || any_of(2) == 0) return;
  Warp& warp = *running->warp;
  warp.ready |= bit(running->lane());
  warp.queued = true;
  queue_.push_back(&warp);
  warp_ = nullptr;
  go_on();
}

void Launch::wait(Wait what) {
  running->warp->waiting[what] |= bit(running->lane());
  go_on();
}

void Launch::wake(Warp& warp, Wait what) {
  warp.ready |= warp.waiting[what];
  warp.waiting[what] = 0;
  if (warp.ready == 0 || warp.queued || &warp == warp_) return;
  warp.queued = true;
  queue_.push_back(&warp);
}

void Launch::wake(Block& block, Wait what) {
  for (Warp& warp : block.warps) wake(warp, what);
}

// Whoever is drawn runs; returns when the thread that called is drawn again.
void Launch::go_on() {
  Thread& before = *running;
  Thread* const next = draw();
  if (!next) {
    if (ended_ < order_.size()) error_ = deadlock();
    before.fiber->switch_to(main_);
  } else if (next != &before) {
    running = next;
    here = next;
    before.fiber->switch_to(*next->fiber);
  }
}

std::size_t Launch::any_of(std::size_t count) { return in_order_ ? 0 : random_() % count; }

Thread* Launch::draw() {
  for (;;) {
    if (warp_ && warp_->ready != 0) {
      const int lane =
          upwards_ ? __builtin_ctz(warp_->ready) : kWarp - 1 - __builtin_clz(warp_->ready);
      warp_->ready ^= bit(std::uint32_t(lane));
      return &warp_->lanes[lane];
    }
    if (Warp* const warp = std::exchange(warp_, nullptr)) wake(*warp, at_turn);
    if (queue_.empty() || in_vain_ > kInVain * fibers_.size()) return nullptr;
    const auto at = queue_.begin() + std::ptrdiff_t(any_of(queue_.size()));
    warp_ = *at;
    upwards_ = any_of(2) == 0;
    warp_->queued = false;
    queue_.erase(at);
  }
}

std::string Launch::deadlock() const {
  static const char* const kPlaces[kWaits] = {"ask in vain (pause, read_count)",
                                              "at a block_barrier", "at a shuffle_xor"};
  constexpr int kMostBlocks = 8;
  std::string report = "deadlock";
  int blocks = 0;
  for (const auto& slot : slots_) {
    const Block& block = *slot;
    if (block.alive == 0 || ++blocks > kMostBlocks) continue;
    report += "; " + name_of(block) + ":";
    for (int wait = 0; wait < kWaits; ++wait) {
      int threads = 0;
      for (const Warp& warp : block.warps)
        threads += __builtin_popcount(warp.waiting[wait] | (wait == at_turn ? warp.ready : 0));
      if (threads > 0) report += " " + std::to_string(threads) + " threads " + kPlaces[wait] + ",";
    }
    if (block.alive < block.threads)
      report += " " + std::to_string(block.threads - block.alive) + " threads have returned,";
    if (report.back() == ',') report.pop_back();
  }
  if (blocks > kMostBlocks)
    report += "; and " + std::to_string(blocks - kMostBlocks) + " blocks more";
  if (started_ < order_.size())
    report += "; " + std::to_string(order_.size() - started_) + " blocks have not started";
  return report;
}

}  // namespace se_kernels::cuda::host

// What a failed assert() of a kernel calls, in place of the C library's.
extern "C" __attribute__((visibility("hidden"))) void __assert_fail(const char* assertion,
                                                                    const char* file, unsigned line,
                                                                    const char*) noexcept {
  using namespace se_kernels::cuda::host;
  const std::string what =
      std::string("assertion '") + assertion + "' failed, " + file + ":" + std::to_string(line);
  if (!under_way) std::terminate();
  under_way->fail(name_of(*under_way->running) + ": " + what);
}
