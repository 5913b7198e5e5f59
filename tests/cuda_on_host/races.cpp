#include "races.h"

#include <algorithm>
#include <sstream>

#include "orders.h"
#include "source_lines.h"

namespace se_kernels::cuda::host {
namespace {

Races* races() {
  static Races one;
  return &one;
}
[[maybe_unused]] const bool registered = (observers().push_back(races()), true);

std::uintptr_t number(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }

// Of agents that happened before.
bool knows(const SharedClock& clock, const Access& access) {
  return clock && clock->at(access.agent) >= access.epoch;
}

}  // namespace

// ---- the launch
void Races::on_launch_begin(const Shape&) {
  states_.assign(under_way->threads(), {});
  shadow_.forget();
  shared_.clear(), counters_.clear();
}

void Races::on_block_begin(const Block& block) {
  for (const Warp& warp : block.warps)
    for (const Thread& thread : warp.lanes) {
      State& s = state(thread) = {};
      s.agent = {std::uint32_t(block.index), std::uint32_t(thread.index)};
    }
  shadow_.forget(number(block.shared), block.memory.bytes());
  shared_[number(block.shared)] = &block;
}

// ---- accesses
Access Races::access_by(const Thread& thread, bool writes, Access::Kind kind, const void* pc) {
  const State& s = state(thread);
  return {s.agent, s.epoch, 0, kind, writes, pc, call_of(thread)};
}

void Races::access(const Thread& thread, const void* address, std::size_t bytes,
                   const Access& now) {
  if (judgement_ == ignore) return;
  const State& s = state(thread);
  const auto known = [&](const Access& earlier) {
    return earlier.agent == s.agent || knows(s.knows, earlier);
  };
  shadow_.access(
      number(address), bytes, now,
      [&](const Access& earlier, std::uintptr_t at) {
        if (!known(earlier)) found(earlier, now, at);
      },
      known);
}

void Races::on_access(const Thread& thread, const void* address, unsigned bytes, bool writes,
                      const void* pc) {
  access(thread, address, bytes, access_by(thread, writes, Access::plain, pc));
}

// ---- what orders them
void Races::release(State& s, Meeting& meeting) { meeting.add(s.knows, s.agent, s.epoch++); }

void Races::on_counter(const Thread& thread, const std::uint32_t* counter, bool writes, Order order,
                       const void* pc) {
  State& s = state(thread);
  access(thread, counter, sizeof(*counter), access_by(thread, writes, Access::atomic, pc));
  const bool acquires = order == Order::acquire || order == Order::acquire_release,
             releases = order == Order::release || order == Order::acquire_release;
  if (acquires && orders.counts("acquire", thread, pc))
    s.knows = joined(s.knows, counters_[counter].result());
  if (releases && orders.counts("release", thread, pc)) release(s, counters_[counter]);
}

void Races::on_barrier_arrive(const Thread& thread, const void* pc) {
  state(thread).joins = orders.counts("barrier", thread, pc);
}

void Races::on_barrier_complete(const Block& block) {
  Meeting meeting;
  const auto each = [&](const auto& use) {
    for (const Warp& warp : block.warps)
      for (const Thread& thread : warp.lanes)
        if (state(thread).joins) use(state(thread));
  };
  each([&](State& s) { release(s, meeting); });
  each([&](State& s) { s.knows = meeting.result(); });
}

// ---- reports
std::string Races::place(std::uintptr_t address) const {
  auto at = shared_.upper_bound(address);
  if (at != shared_.begin()) {
    const Block& block = *(--at)->second;
    if (address - at->first < block.memory.bytes())
      return "byte " + std::to_string(address - at->first) + " of the shared memory of " +
             name_of(block);
  }
  std::ostringstream text;
  text << "global memory at 0x" << std::hex << address;
  return text.str();
}

void Races::found(const Access& earlier, const Access& now, std::uintptr_t address) {
  if (judgement_ == note) {
    ++noted_[{earlier.pc, now.pc}];
    return;
  }
  const auto tell = [&](const Access& access) {
    return std::string(access.kind == Access::atomic ? "atomic " : "") +
           (access.writes ? "write" : "read") + " by thread " + std::to_string(access.agent.index) +
           " of block " + std::to_string(access.agent.block) + ", " +
           lines_of(access.pc, access.call);
  };
  under_way->fail("race: two accesses of " + place(address) + ": " + tell(earlier) + "; " +
                  tell(now));
}

std::string Races::take_noted() {
  std::ostringstream lines;
  for (const auto& [pcs, times] : noted_)
    lines << offset_of(pcs.first) << ' ' << offset_of(pcs.second) << ' ' << times << '\n';
  noted_.clear();
  return lines.str();
}

}  // namespace se_kernels::cuda::host

// ---- for ctypes (tests/host_gpu.py), between launches
#define SE_EXPORT extern "C" __attribute__((visibility("default")))

using namespace se_kernels::cuda::host;

namespace {

// Kept until the next call: as long as it may be.
const char* kept(std::string text) {
  static std::string last;
  last = std::move(text);
  return last.c_str();
}

}  // namespace

// 0: races are not looked for; 1: the first ends the launch, as at first; 2: all are noted.
SE_EXPORT void se_host_judge_races(int judgement) { races()->judge(Races::Judgement(judgement)); }
SE_EXPORT const char* se_host_take_races() { return kept(races()->take_noted()); }
SE_EXPORT void se_host_listen_for_orders(int on) { orders.listen(on != 0); }
SE_EXPORT const char* se_host_take_orders() { return kept(orders.take_used()); }
SE_EXPORT void se_host_drop_orders(const char* lines) { orders.drop(lines); }
