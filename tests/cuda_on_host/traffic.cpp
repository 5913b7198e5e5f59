#include "traffic.h"

#include <dlfcn.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "accesses.h"

namespace se_kernels::cuda::host {
namespace {

constexpr int kBanks = 32;
constexpr std::uintptr_t kWord = 4;  // of a bank

// The lanes' addresses, ascending.
struct Sorted {
  std::uintptr_t addresses[kWarp];
  int size = 0;
  Sorted(const Request& request, int first, int end) {
    for (int lane = first; lane < end; ++lane)
      if (request.lanes >> lane & 1u) addresses[size++] = request.addresses[lane];
    if (!std::is_sorted(begin(), this->end())) std::sort(begin(), this->end());
  }
  std::uintptr_t* begin() { return addresses; }
  std::uintptr_t* end() { return addresses + size; }
};

Count count_global(const Request& request, Ledger& ledger) {
  Count count;
  std::uintptr_t end = 0, sectors_end = 0;
  for (const std::uintptr_t address : Sorted(request, 0, kWarp)) {
    const std::uintptr_t to = address + request.bytes, first = address / kSector,
                         last = (to - 1) / kSector;
    count.units += last + 1 - std::min(last + 1, std::max(first, sectors_end));
    sectors_end = std::max(sectors_end, last + 1);
    const std::uintptr_t from = std::max(address, end);
    if (from < to) ledger.add(from, to - from, request.writes), count.bytes += to - from;
    end = std::max(end, to);
  }
  count.least = (count.bytes + kSector - 1) / kSector;
  return count;
}

// Four bytes and less: all lanes at once; eight: 16 lanes; sixteen: eight.
Count count_shared(const Request& request) {
  Count count;
  const int together = request.bytes <= kWord ? kWarp : kWarp * int(kWord) / int(request.bytes);
  for (int first = 0; first < kWarp; first += together) {
    std::uint64_t words_of[kBanks] = {};
    std::uintptr_t next = 0;
    Sorted addresses(request, first, first + together);
    if (addresses.size == 0) continue;
    for (const std::uintptr_t address : addresses)
      for (std::uintptr_t word = std::max(next, address / kWord);
           word * kWord < address + request.bytes; next = ++word)
        ++words_of[word % kBanks];
    count.units += *std::max_element(std::begin(words_of), std::end(words_of));
    ++count.least;
  }
  count.bytes = std::uint64_t(__builtin_popcount(request.lanes)) * request.bytes;
  return count;
}

// ---- JSON

std::string quoted(const std::string& text) { return '"' + text + '"'; }
template <class Number>
std::string field(const char* name, Number number) {
  return ", " + quoted(name) + ": " + std::to_string(number);
}
std::string fields(const Count& c, Space space) {
  const bool global = space == Space::global;
  return field("requests", c.requests) + field("lanes", c.lanes) + field("bytes", c.bytes) +
         field(global ? "sectors" : "wavefronts", c.units) +
         field(global ? "least_sectors" : "least_wavefronts", c.least);
}
std::string object(const std::string& fields) { return "{" + fields.substr(2) + "}"; }
std::string field(const char* name, const Count& count, Space space) {
  return ", " + quoted(name) + ": " + object(fields(count, space));
}

// Where the code lies in the library's file, the outermost call first.
std::string places(const Call* call, const void* pc) {
  static const char anchor = 0;
  static const auto base = [] {
    Dl_info info{};
    dladdr(&anchor, &info);
    return reinterpret_cast<std::uintptr_t>(info.dli_fbase);
  }();
  const auto place = [](const void* at) {
    return std::to_string(reinterpret_cast<std::uintptr_t>(at) - base);
  };
  std::string list = place(pc);
  // the outermost two are the launch's, down to the kernel
  for (; call && call->outer && call->outer->outer; call = call->outer)
    list = place(call->pc) + ", " + list;
  return "[" + list + "]";
}

}  // namespace

void Count::add(const Count& other) {
  requests += other.requests, lanes += other.lanes, bytes += other.bytes;
  units += other.units, least += other.least;
}

Count count(const Request& request, Ledger& ledger) {
  Count count;
  if (request.space == Space::global)
    count = count_global(request, ledger);
  else
    count = count_shared(request);
  count.requests = 1;
  count.lanes = std::uint64_t(__builtin_popcount(request.lanes));
  return count;
}

void Traffic::add(const Request& request) {
  const Count found = count(request, ledger);
  Launched& launch = now();
  launch.rounds += request.begins;
  Count& total = request.space == Space::shared ? launch.shared[request.writes]
                 : request.vector               ? launch.vectors[request.writes]
                                                : launch.global[request.writes];
  total.add(found);
  launch.sites.try_emplace({request.call, request.pc}, request, Count{})
      .first->second.second.add(found);
}

std::string Traffic::json() const {
  static const char* const kSpaces[] = {"global", "shared"};
  std::string list;
  for (const Launched& l : launches_) {
    std::string sites;
    for (const auto& [at, site] : l.sites) {
      const auto& [instruction, count] = site;
      sites += ", " + object(", \"at\": " + places(at.first, at.second) +
                             ", \"space\": " + quoted(kSpaces[int(instruction.space)]) +
                             field("writes", int(instruction.writes)) +
                             field("vector", int(instruction.vector)) +
                             field("each", instruction.bytes) + fields(count, instruction.space));
    }
    list +=
        ", " +
        object(", \"kernel\": " + quoted(l.shape.kernel) + field("blocks", l.shape.blocks) +
               field("threads", l.shape.threads) + field("shared_bytes", l.shape.shared_bytes) +
               field("vector_loads", l.vectors[0], Space::global) +
               field("vector_stores", l.vectors[1], Space::global) +
               field("loads", l.global[0], Space::global) +
               field("stores", l.global[1], Space::global) +
               field("shared_loads", l.shared[0], Space::shared) +
               field("shared_stores", l.shared[1], Space::shared) + field("rounds", l.rounds) +
               field("tickets", l.tickets) + field("atomics", l.atomics) + field("polls", l.polls) +
               field("shuffles", l.shuffles) + field("barriers", l.barriers) + ", \"sites\": [" +
               (sites.empty() ? sites : sites.substr(2)) + "]");
  }
  return "[" + (list.empty() ? list : list.substr(2)) + "]";
}

// ---- what it hears

void Traffic::on_launch_begin(const Shape& shape) {
  launches_.emplace_back().shape = shape;
  lanes_.assign(under_way->threads(), {});
  requests_.begin_launch(under_way->threads());
}
void Traffic::on_block_begin(const Block& block) {
  for (const Warp& warp : block.warps)
    for (const Thread& thread : warp.lanes) lane(thread) = {};
  requests_.begin_block(block);
}
void Traffic::on_block_end(const Block& block) { requests_.end_block(block); }

void Traffic::on_call(const Thread& thread, const void* pc) { requests_.enter(thread, pc); }
void Traffic::on_return(const Thread& thread) { requests_.leave(thread); }

void Traffic::on_access(const Thread& thread, const void* address, unsigned bytes, bool writes,
                        const void* pc) {
  Lane& own = lane(thread);
  Instruction one{call_of(thread), pc, Space::global, writes, own.vector, false, bytes};
  if (thread.warp->block->memory.holds(address, bytes)) one.space = Space::shared;
  own.vector = false;
  if (writes) {
    own.under_way = 0;
  } else if (one.vector) {
    one.begins = own.under_way == 0;
    own.under_way += bytes;
  }
  // a copy of a struct: a word at a time, where it is not a vector
  constexpr unsigned kVector = 16;
  const bool whole = bytes <= kVector && (bytes & (bytes - 1)) == 0;
  one.bytes = whole ? bytes : bytes % kWord == 0 ? unsigned(kWord) : 1;
  for (unsigned at = 0; at < bytes; at += one.bytes)
    requests_.add(thread, one, static_cast<const unsigned char*>(address) + at);
}

void Traffic::on_vector(const Thread& thread) { lane(thread).vector = true; }
void Traffic::on_use(const Thread& thread) { lane(thread).under_way = 0; }

void Traffic::on_counter(const Thread&, const std::uint32_t*, bool writes, Order order,
                         const void*) {
  ++(writes ? now().atomics : now().polls);
  now().tickets += order == Order::relaxed;
}
void Traffic::on_shuffle(const Thread& thread) {
  for (const Thread& other : thread.warp->lanes) lane(other).under_way = 0;
  ++now().shuffles;
}
void Traffic::on_barrier_arrive(const Thread& thread, const void*) { lane(thread).under_way = 0; }
void Traffic::on_barrier_complete(const Block& block) {
  ++now().barriers;
  requests_.pass_barrier(block);
}

}  // namespace se_kernels::cuda::host

// ---- for ctypes (tests/host_gpu.py), between launches

#define SE_EXPORT extern "C" __attribute__((visibility("default")))

using namespace se_kernels::cuda::host;

namespace {

std::unique_ptr<Traffic> traffic;              // null until it is first asked for
std::optional<std::vector<Observer*>> others;  // while it counts

}  // namespace

SE_EXPORT void se_host_traffic_stop() {
  if (others) observers() = *std::exchange(others, std::nullopt);
}
// Counts from here on, from nothing; nobody else observes before the end of it.
SE_EXPORT void se_host_traffic_start() {
  se_host_traffic_stop();
  traffic = std::make_unique<Traffic>();
  others = std::exchange(observers(), {traffic.get()});
}

// The launches, kept until the next call.
SE_EXPORT const char* se_host_traffic_launches() {
  static std::string json;
  json = traffic->json();
  return json.c_str();
}

// Of so many bytes of global memory from p on, of all of it where p is null: bytes that were asked
// for and that had to come, read and then written.
SE_EXPORT void se_host_traffic_of(const void* p, std::size_t bytes, std::uint64_t* moved) {
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  for (const bool writes : {false, true}) {
    const Moved found = p ? traffic->ledger.of(at, bytes, writes) : traffic->ledger.all(writes);
    *moved++ = found.asked, *moved++ = found.once;
  }
}
