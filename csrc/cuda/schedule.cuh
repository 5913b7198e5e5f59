// Two sweeps in one launch: who does what, when. Tickets and counters, zero at the launch.
//
// Items are of three kinds: a tile of the first sweep, a part of the excitation, a tile of the
// second sweep. A group's come in this order, and only wait for what has a smaller ticket.
#pragma once

#include "plan.h"
#include "primitives.cuh"

namespace se_kernels::cuda {

enum class Kind { first_sweep, excite, second_sweep };

struct Item {
  Kind kind;
  int group, index;
};

// The first sweep is cut.lag groups before the second, the excitation cut.ahead groups, fewer.
SE_DEVICE Item item_of(int ticket, const Cut& cut) {
  const int tiles = cut.blocks * cut.splits, excites = cut.excites, lag = cut.lag,
            ahead = cut.ahead;
  if (ticket < lag * tiles) return {Kind::first_sweep, ticket / tiles, ticket % tiles};
  int at = ticket - lag * tiles;
  if (at < ahead * excites) return {Kind::excite, at / excites, at % excites};
  at -= ahead * excites;
  const int both = excites + 2 * tiles, one = excites + tiles, paired = (cut.groups - lag) * both;
  if (at < paired) {
    const int group = at / both, index = at % both;
    if (index < excites) return {Kind::excite, group + ahead, index};
    const int tile = (index - excites) / 2;
    if ((index - excites) % 2 == 0) return {Kind::first_sweep, group + lag, tile};
    return {Kind::second_sweep, group, tile};
  }
  at -= paired;
  const int lone = (lag - ahead) * one;
  if (at < lone) {
    const int group = cut.groups - lag + at / one, index = at % one;
    if (index < excites) return {Kind::excite, group + ahead, index};
    return {Kind::second_sweep, group, index - excites};
  }
  at -= lone;
  return {Kind::second_sweep, cut.groups - ahead + at / tiles, at % tiles};
}

// One ticket for the block.
SE_DEVICE int take_ticket(std::uint32_t* tickets, int* shared) {
  if (thread_index() == 0) *shared = int(take(tickets));
  block_barrier();
  return *shared;
}

// Counts this block in, all that it stored before.
SE_DEVICE void publish(std::uint32_t* counter) {
  block_barrier();
  if (thread_index() == 0) add_release(counter);
}

// Whether this block is the last of `parts`, and so sees what all stored.
SE_DEVICE bool completes(std::uint32_t* counter, int parts, int* shared) {
  block_barrier();
  if (thread_index() == 0) *shared = int(count_in(counter)) == parts - 1;
  block_barrier();
  return *shared;
}

// Until `expected` blocks were counted in; what they stored is seen from here on.
SE_DEVICE void wait_for(const std::uint32_t* counter, int expected) {
  if (thread_index() == 0)
    while (int(read_count(counter)) < expected) pause();
  block_barrier();
}

}  // namespace se_kernels::cuda
