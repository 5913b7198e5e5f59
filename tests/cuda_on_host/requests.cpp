#include "requests.h"

namespace se_kernels::cuda::host {
namespace {

std::uint64_t mixed(std::uint64_t key, const void* pc, std::uint32_t count) {
  key ^= reinterpret_cast<std::uintptr_t>(pc) + count * 0x9e3779b97f4a7c15u;
  key *= 0xff51afd7ed558ccdu;
  return key ^ key >> 32;
}

}  // namespace

std::uint32_t Requests::Frame::count(const void* at) {
  for (std::size_t i = 0; i < counts.size(); ++i) {  // most come in the same order again
    last = last + 1 < counts.size() ? last + 1 : 0;
    if (counts[last].first == at) return counts[last].second++;
  }
  counts.push_back({at, 1});
  last = counts.size() - 1;
  return 0;
}

void Requests::begin_launch(std::size_t threads) {
  lanes_.assign(threads, {});
  open_.assign(threads / kWarp, {});
}

void Requests::begin_block(const Block& block) {
  for (const Warp& warp : block.warps)
    for (const Thread& thread : warp.lanes) {
      Lane& lane = lanes_[std::size_t(thread.slot)];
      if (lane.frames.empty()) lane.frames.resize(1);
      lane.depth = 1;
      lane.frame() = {0, nullptr, {}, 0};
    }
}

void Requests::complete(const Block& block) {
  for (const Warp& warp : block.warps) {
    Open& open = open_[std::size_t(warp.lanes[0].slot / kWarp)];
    for (const auto& [key, request] : open) sink_(to_, request);
    open.clear();
  }
}

void Requests::end_block(const Block& block) { complete(block); }

void Requests::pass_barrier(const Block& block) {
  complete(block);
  for (const Warp& warp : block.warps)
    for (const Thread& thread : warp.lanes) {
      Lane& lane = lanes_[std::size_t(thread.slot)];
      std::uint64_t key = 0;
      for (std::size_t i = 0; i < lane.depth; ++i) {
        Frame& frame = lane.frames[i];
        key = frame.key = i == 0 ? 0 : mixed(key, frame.pc, 0);
        frame.counts.clear();
      }
    }
}

void Requests::enter(const Thread& thread, const void* pc) {
  Lane& lane = lanes_[std::size_t(thread.slot)];
  const std::uint64_t key = mixed(lane.frame().key, pc, lane.frame().count(pc));
  if (lane.depth == lane.frames.size()) lane.frames.emplace_back();
  Frame& inner = lane.frames[lane.depth++];
  inner.key = key, inner.pc = pc;
  inner.counts.clear();
}

void Requests::leave(const Thread& thread) {
  Lane& lane = lanes_[std::size_t(thread.slot)];
  if (lane.depth > 1) --lane.depth;
}

void Requests::add(const Thread& thread, const Instruction& instruction, const void* address) {
  Frame& frame = lanes_[std::size_t(thread.slot)].frame();
  const std::uint64_t key = mixed(frame.key, instruction.pc, frame.count(instruction.pc));
  Open& open = open_[std::size_t(thread.slot / kWarp)];
  const auto [at, fresh] = open.try_emplace(key);
  Request& request = at->second;
  if (fresh) static_cast<Instruction&>(request) = instruction;
  request.begins |= instruction.begins;
  const std::uint32_t lane = thread.lane();
  request.addresses[lane] = reinterpret_cast<std::uintptr_t>(address);
  request.lanes |= std::uint32_t(1) << lane;
  if (request.lanes != ~std::uint32_t(0)) return;
  sink_(to_, request);
  open.erase(at);
}

}  // namespace se_kernels::cuda::host
