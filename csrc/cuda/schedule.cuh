// The image-local schedule: both sweeps and the FCs between them in one launch, dealt by tickets.
// An item waits only for what has a smaller ticket, so someone already runs it: nothing deadlocks.
#pragma once

#include "number.cuh"
#include "plan.h"

namespace se_kernels::cuda {

enum class Kind { first_sweep, first_fc, second_fc, second_sweep };

// A tile of image n: a block of channels, a split of pixels.
struct Part {
  int n, block, split;
};

// Of a sweep: a tile. Of an FC: of group n its item `block`.
struct Item {
  Kind kind;
  Part part;
};

// The i-th tile, from image `first` on.
SE_DEVICE Part part_of(const TilePlan& plan, int first, int i) {
  const int image = divide(i, plan.by_tiles), rest = i - image * plan.by_tiles.by,
            split = divide(rest, plan.by_blocks);
  return {first + image, rest - split * plan.blocks, split};
}

// That of this block, of a launch with a block for each.
SE_DEVICE Part part_of(const TilePlan& plan, bool reversed) {
  return part_of(plan, 0, reversed ? block_count() - 1 - block_index() : block_index());
}

// The items in the order of their tickets. Step by step: the parts of both FCs, then the tiles of
// the first sweep of group `step` by turns with those of the second sweep of an earlier group.
class Items {
 public:
  SE_DEVICE Items(const TilePlan& plan, int images)
      : plan_(plan), images_(images), each_(plan.blocks * plan.splits) {}

  SE_DEVICE Item at(int ticket) const {
    int step = 0, end = plan_.groups + plan_.lag;  // before(step) <= ticket < before(end)
    while (end - step > 1) {
      const int middle = (step + end) / 2;
      if (before(middle) <= ticket)
        step = middle;
      else
        end = middle;
    }
    return within(step, ticket - before(step));
  }

 private:
  // Of the groups before one: their number, their tiles.
  SE_DEVICE int groups(int group) const { return larger(0, smaller(group, plan_.groups)); }
  SE_DEVICE int tiles(int group) const {
    return smaller(groups(group) * plan_.images, images_) * each_;
  }
  // The tickets before a step.
  SE_DEVICE int before(int step) const {
    return (plan_.sweeps_first ? tiles(step) : 0) +
           (plan_.sweeps_second ? tiles(step - plan_.lag) : 0) +
           groups(step - plan_.first_fc_lag) * plan_.first_fc_items +
           groups(step - plan_.second_fc_lag) * plan_.second_fc_items;
  }
  // Whether a step has its part of what comes `lag` groups later.
  SE_DEVICE bool has(int step, int lag) const {
    return groups(step + 1 - lag) > groups(step - lag);
  }
  SE_DEVICE Item within(int step, int i) const {
    const int first_fc = has(step, plan_.first_fc_lag) ? plan_.first_fc_items : 0,
              second_fc = has(step, plan_.second_fc_lag) ? plan_.second_fc_items : 0;
    if (i < first_fc) return {Kind::first_fc, {step - plan_.first_fc_lag, i, 0}};
    i -= first_fc;
    if (i < second_fc) return {Kind::second_fc, {step - plan_.second_fc_lag, i, 0}};
    i -= second_fc;
    const int earlier = step - plan_.lag,
              a = plan_.sweeps_first ? tiles(step + 1) - tiles(step) : 0,
              b = plan_.sweeps_second ? tiles(earlier + 1) - tiles(earlier) : 0,
              both = smaller(a, b);
    const bool is_first = i < 2 * both ? i % 2 == 0 : a > b;
    const int index = i < 2 * both ? i / 2 : i - both, group = is_first ? step : earlier;
    return {is_first ? Kind::first_sweep : Kind::second_sweep,
            part_of(plan_, group * plan_.images, index)};
  }

  const TilePlan& plan_;
  int images_, each_;
};

// A counter of tickets, and three of each group: tiles of the first sweep that are done, parts of
// either FC.
struct Counters {
  std::uint32_t* data;
  SE_DEVICE std::uint32_t* tickets() const { return data; }
  SE_DEVICE std::uint32_t* reduced(int group) const { return data + 1 + 3 * group; }
  SE_DEVICE std::uint32_t* hidden(int group) const { return data + 2 + 3 * group; }
  SE_DEVICE std::uint32_t* excited(int group) const { return data + 3 + 3 * group; }
};

// The block's item, by a ticket; words[1] stays its image or group.
SE_DEVICE Item take_item(const Counters& counters, const TilePlan& plan, int images, int* words) {
  if (thread_index() == 0) {
    const Item item = Items(plan, images).at(int(take(counters.tickets())));
    words[0] = int(item.kind), words[1] = item.part.n;
    words[2] = item.part.block, words[3] = item.part.split;
  }
  block_barrier();
  return {Kind(words[0]), {words[1], words[2], words[3]}};
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
