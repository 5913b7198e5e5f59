// Bulk copies: under way until a moment that the schedule draws, their bytes counted by arrivals.
#include "machine.h"

namespace se_kernels::cuda {

using namespace host;

namespace {

constexpr std::uintptr_t kBulk = 16;  // sizes and addresses are its multiples

Block& block_here() { return *under_way->running->warp->block; }

// "arrivals at 64: "
std::string place(const Block& block, const std::uint64_t* arrivals) {
  return "arrivals at " +
         std::to_string(reinterpret_cast<const unsigned char*>(arrivals) - block.shared) + ": ";
}

[[noreturn]] void fault(const std::uint64_t* arrivals, const std::string& what) {
  fail(name_of(*under_way->running) + ", " + place(block_here(), arrivals) + what);
}

Arrivals& started(const std::uint64_t* arrivals) {
  Block& block = block_here();
  const auto found = block.arrivals.find(arrivals);
  if (found == block.arrivals.end()) fault(arrivals, "used, but not started");
  if (found->second.starter != here->index && found->second.barriers == block.barriers)
    fault(arrivals, "no block_barrier between their start and their use by another thread");
  return found->second;
}

std::string count(const Arrivals& arrivals) {
  return "phase " + std::to_string(arrivals.phase) + ", " + std::to_string(arrivals.come) + " of " +
         (arrivals.expecting ? std::to_string(arrivals.expected) : "unknown") + " bytes have come";
}

void end_phase_if_complete(Block& block, const std::uint64_t* at, Arrivals& arrivals) {
  if (!arrivals.expecting || arrivals.come < arrivals.expected) return;
  arrivals.expecting = false;
  arrivals.expected = arrivals.issued = arrivals.come = 0;
  observe(&Observer::on_phase_complete, block, at);
  ++arrivals.phase;
  under_way->progress();
  under_way->wake(block, at_wait_arrivals);
}

void check_issued(const std::uint64_t* arrivals, const Arrivals& a) {
  if (a.expecting && a.issued > a.expected)
    fault(arrivals, std::to_string(a.issued) + " bytes are loaded in phase " +
                        std::to_string(a.phase) + ", but " + std::to_string(a.expected) +
                        " are expected");
}

}  // namespace

void start_arrivals(std::uint64_t* arrivals) {
  Block& block = block_here();
  if (!block.memory.holds(arrivals, sizeof(*arrivals)) ||
      reinterpret_cast<std::uintptr_t>(arrivals) % sizeof(*arrivals) != 0)
    fault(arrivals, "expected 8 aligned bytes of this block's shared memory");
  if (!block.arrivals.insert({arrivals, {here->index, block.barriers}}).second)
    fault(arrivals, "started twice");
  observe(&Observer::on_arrivals_start, *under_way->running, arrivals, __builtin_return_address(0));
}

void expect_bytes(std::uint64_t* arrivals, std::uint32_t bytes) {
  Arrivals& a = started(arrivals);
  if (a.expecting) fault(arrivals, "expect_bytes twice in phase " + std::to_string(a.phase));
  a.expecting = true;
  a.expected = bytes;
  observe(&Observer::on_expect_bytes, *under_way->running, arrivals, __builtin_return_address(0));
  check_issued(arrivals, a);
  end_phase_if_complete(block_here(), arrivals, a);
}

void bulk_load(void* to, const void* from, std::uint32_t bytes, std::uint64_t* arrivals) {
  Block& block = block_here();
  Arrivals& a = started(arrivals);
  const auto target = reinterpret_cast<std::uintptr_t>(to);
  if (bytes == 0 || (target | reinterpret_cast<std::uintptr_t>(from) | bytes) % kBulk != 0)
    fault(arrivals, "bulk_load: expected addresses and a size that are multiples of 16 bytes");
  if (!block.memory.holds(to, bytes))
    fault(arrivals, "bulk_load: expected room in this block's shared memory");
  for (const Copy& other : under_way->copies) {
    const auto start = reinterpret_cast<std::uintptr_t>(other.to);
    if (target < start + other.bytes && start < target + bytes)
      fault(arrivals, "bulk_load over another that is under way");
  }
  a.issued += bytes;
  check_issued(arrivals, a);
  std::memset(to, kPoison, bytes);
  const Copy copy{&block, arrivals, static_cast<unsigned char*>(to), from, bytes};
  observe(&Observer::on_bulk_load, *under_way->running, copy, __builtin_return_address(0));
  under_way->copies.push_back(copy);
}

void wait_arrivals(std::uint64_t* arrivals, std::uint32_t parity) {
  const Arrivals& a = started(arrivals);
  if (parity > 1) fault(arrivals, "expected a parity of 0 or 1, got " + std::to_string(parity));
  while (a.phase % 2 == parity) under_way->wait(at_wait_arrivals);
  observe(&Observer::on_wait_arrivals, *under_way->running, arrivals, __builtin_return_address(0));
}

void order_before_bulk_load() {
  observe(&Observer::on_proxy_fence, *under_way->running, __builtin_return_address(0));
}

namespace host {

void make(const Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.bytes);
  Arrivals& arrivals = copy.block->arrivals.at(copy.arrivals);
  arrivals.come += copy.bytes;
  end_phase_if_complete(*copy.block, copy.arrivals, arrivals);
}

void check_copies_ended(const Block& block) {
  for (const Copy& copy : under_way->copies)
    if (copy.block == &block) fail(name_of(block) + " has ended with a bulk_load under way");
  const std::string rest = outstanding(block);
  if (!rest.empty()) fail(name_of(block) + " has ended," + rest);
}

std::string outstanding(const Block& block) {
  std::string all;
  for (const auto& [at, arrivals] : block.arrivals)
    if (arrivals.expecting || arrivals.issued > 0)
      all += " " + place(block, at) + count(arrivals) + ",";
  if (!all.empty()) all.pop_back();
  return all;
}

}  // namespace host
}  // namespace se_kernels::cuda
