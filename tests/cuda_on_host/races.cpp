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
const Block& block_of(const Thread& thread) { return *thread.warp->block; }

// Of agents that happened before.
bool knows(const SharedClock& clock, const Access& access) {
  return clock && clock->at(access.agent) >= access.epoch;
}

}  // namespace

// ---- the launch
void Races::on_launch_begin(const Shape& shape) {
  threads_ = std::uint32_t(shape.threads);
  states_.assign(under_way->threads(), {});
  copiers_.assign(std::size_t(shape.blocks), 0);
  shadow_.forget();
  shared_.clear(), counters_.clear(), clusters_.clear(), arrivals_.clear(), remote_.clear();
}

void Races::on_block_begin(const Block& block) {
  for (const Warp& warp : block.warps)
    for (const Thread& thread : warp.lanes) {
      State& s = state(thread) = {};
      s.agent = {std::uint32_t(block.index), std::uint32_t(thread.index)};
    }
  shadow_.forget(number(block.shared), block.memory.bytes());
  shared_[number(block.shared)] = &block;
  remote_[&block].clear();
  if (block.rank == 0) clusters_[block.cluster_of] = {};
}

// What a thread knows when it returns happened before its block's end.
void Races::on_thread_end(const Thread& thread) {
  auto& loads = remote_[&block_of(thread)];
  const auto known = [&](const Access& load) { return knows(state(thread).knows.before, load); };
  loads.erase(std::remove_if(loads.begin(), loads.end(), known), loads.end());
}

void Races::on_block_end(const Block& block) {
  for (const Access& load : remote_[&block])
    found(load, load,
          who(load) + " loads shared memory of " + name_of(block) +
              ", which may have ended: none of its threads waits for that");
}

// ---- accesses
Access Races::access_by(const Thread& thread, bool writes, Access::Kind kind, const void* pc) {
  const State& s = state(thread);
  return {s.agent, s.epoch, 0, kind, writes, pc, call_of(thread)};
}

// The thread's, or a copy's that it issues.
void Races::access(const Thread& thread, const void* address, std::size_t bytes,
                   const Access& now) {
  if (judgement_ == ignore) return;
  const State& s = state(thread);
  const auto known = [&](const Access& earlier) {
    return earlier.agent == s.agent || knows(s.knows.before, earlier);
  };
  const auto fenced = [&](const Access& earlier) {
    if (now.kind != Access::copy || earlier.kind == Access::copy) return true;
    return earlier.agent == s.agent ? earlier.epoch <= s.fenced : knows(s.knows.fenced, earlier);
  };
  shadow_.access(
      number(address), bytes, now,
      [&](const Access& earlier, std::uintptr_t at) {
        const bool before = known(earlier);
        if (!before || !fenced(earlier)) found(earlier, now, at, before);
      },
      known);
}

void Races::on_access(const Thread& thread, const void* address, unsigned bytes, bool writes,
                      const void* pc) {
  access(thread, address, bytes, access_by(thread, writes, Access::plain, pc));
}

void Races::on_remote_load(const Thread& thread, const Block& of, const void*, const void* pc) {
  if (judgement_ == ignore || &of == &block_of(thread)) return;
  const State& s = state(thread);
  const Access load = access_by(thread, false, Access::plain, pc);
  if (!s.knows.before || !s.knows.before->knows_any_of(std::uint32_t(of.index)))
    found(load, load,
          who(load) + " loads shared memory of " + name_of(of) +
              ", which may not have begun: the thread has not waited for that");
  auto& loads = remote_[&of];
  for (std::size_t i = loads.size(); i > 0; --i)
    if (loads[i - 1].agent == load.agent) {
      loads[i - 1] = load;
      return;
    }
  loads.push_back(load);
}

// ---- what orders them
void Races::release(State& s, Meeting& meeting) {
  meeting.add(s.knows, s.agent, s.epoch++, s.fenced);
}

void Races::on_counter(const Thread& thread, const std::uint32_t* counter, bool writes, Order order,
                       const void* pc) {
  State& s = state(thread);
  access(thread, counter, sizeof(*counter), access_by(thread, writes, Access::atomic, pc));
  const bool acquires = order == Order::acquire || order == Order::acquire_release,
             releases = order == Order::release || order == Order::acquire_release;
  if (acquires && orders.counts("acquire", thread, pc)) s.knows.join(counters_[counter].result());
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

void Races::on_cluster_arrive(const Thread& thread, const void* pc) {
  if (orders.counts("arrive", thread, pc))
    release(state(thread), clusters_[block_of(thread).cluster_of].coming);
}

void Races::on_cluster_complete(const Cluster& cluster) {
  Barrier& barrier = clusters_[&cluster];
  barrier.passed = barrier.coming.result();
  barrier.coming = {};
}

void Races::on_cluster_wait(const Thread& thread, const void* pc) {
  if (orders.counts("wait", thread, pc))
    state(thread).knows.join(clusters_[block_of(thread).cluster_of].passed);
}

void Races::on_arrivals_start(const Thread& thread, const std::uint64_t* arrivals, const void* pc) {
  access(thread, arrivals, sizeof(*arrivals), access_by(thread, true, Access::plain, pc));
  Barrier& barrier = arrivals_[arrivals] = {};
  const auto block = std::uint32_t(block_of(thread).index);
  barrier.copies = {block, threads_ + copiers_[block]++};
}

void Races::on_expect_bytes(const Thread& thread, const std::uint64_t* arrivals, const void* pc) {
  access(thread, arrivals, sizeof(*arrivals), access_by(thread, true, Access::atomic, pc));
  if (orders.counts("expect", thread, pc)) release(state(thread), arrivals_[arrivals].coming);
}

void Races::on_bulk_load(const Thread& thread, const Copy& copy, const void* pc) {
  access(thread, copy.arrivals, sizeof(*copy.arrivals),
         access_by(thread, true, Access::atomic, pc));
  Access now = access_by(thread, false, Access::copy, pc);
  const Barrier& barrier = arrivals_[copy.arrivals];
  now.agent = barrier.copies, now.epoch = barrier.phase;
  access(thread, copy.from, copy.bytes, now);
  now.writes = true;
  access(thread, copy.to, copy.bytes, now);
}

void Races::on_phase_complete(const Block&, const std::uint64_t* arrivals) {
  Barrier& barrier = arrivals_[arrivals];
  barrier.coming.add(barrier.copies, barrier.phase++);
  barrier.passed = barrier.coming.result();
  barrier.coming = {};
}

void Races::on_wait_arrivals(const Thread& thread, const std::uint64_t* arrivals, const void* pc) {
  access(thread, arrivals, sizeof(*arrivals), access_by(thread, true, Access::atomic, pc));
  if (orders.counts("arrivals", thread, pc)) state(thread).knows.join(arrivals_[arrivals].passed);
}

void Races::on_proxy_fence(const Thread& thread, const void* pc) {
  if (!orders.counts("fence", thread, pc)) return;
  State& s = state(thread);
  s.knows.fenced = s.knows.before;
  s.fenced = s.epoch++;
}

// ---- reports
std::string Races::who(const Access& access) const {
  const std::string block = " of block " + std::to_string(access.agent.block);
  return access.agent.index < threads_ ? "thread " + std::to_string(access.agent.index) + block
                                       : "a bulk copy" + block;
}

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

void Races::found(const Access& earlier, const Access& now, std::uintptr_t address,
                  bool only_unfenced) {
  if (judgement_ == note) return found(earlier, now, "");
  const auto tell = [&](const Access& access) {
    return std::string(access.kind == Access::atomic ? "atomic " : "") +
           (access.writes ? "write" : "read") + " by " + who(access) + ", " +
           lines_of(access.pc, access.call);
  };
  found(earlier, now,
        (only_unfenced ? "no proxy fence between two accesses of " : "two accesses of ") +
            place(address) + ": " + tell(earlier) + "; " + tell(now));
}

void Races::found(const Access& earlier, const Access& now, const std::string& what) {
  if (judgement_ == note)
    ++noted_[{earlier.pc, now.pc}];
  else
    under_way->fail("race: " + what + (&earlier == &now ? ": " + lines_of(now.pc, now.call) : ""));
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
