// The image-local schedule: both sweeps and the FCs between them in one launch, dealt by tickets.
//
// The groups of images follow each other; of each step the FCs of earlier groups come first, then
// tiles of the first sweep of one group by turns with tiles of the second sweep of an earlier one.
// An item waits only for what has a smaller ticket, so someone already runs it: nothing deadlocks.
#pragma once

#include "number.cuh"
#include "plan.h"

namespace se_kernels::cuda {

enum class Kind { first_sweep, first_fc, second_fc, second_sweep, none };

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
SE_DEVICE Part part_of(const Cut& cut, int first, int i) {
  const int image = divide(i, cut.by_tiles), rest = i - image * cut.by_tiles.by,
            split = divide(rest, cut.by_blocks);
  return {first + image, rest - split * cut.blocks, split};
}

// That of this block, of a launch with a block for each.
SE_DEVICE Part part_of(const Cut& cut, bool reversed) {
  return part_of(cut, 0, reversed ? block_count() - 1 - block_index() : block_index());
}

// The items in the order of their tickets, from one step on: of one thread.
class Items {
 public:
  SE_DEVICE Items(const Cut& cut, int images) : cut_(cut), images_(images) {}

  // The item of a ticket; tickets must not decrease.
  SE_DEVICE Item at(int ticket) {
    for (; step_ < cut_.groups + cut_.lag; before_ += size_of(step_++))
      if (ticket - before_ < size_of(step_)) return within(ticket - before_);
    return {Kind::none, {}};
  }

 private:
  SE_DEVICE int images_of(int group) const {
    const int rest = images_ - group * cut_.images;
    return rest < cut_.images ? rest : cut_.images;
  }
  SE_DEVICE bool is_group(int group) const { return group >= 0 && group < cut_.groups; }
  SE_DEVICE int tiles(int group, bool swept) const {
    return swept && is_group(group) ? images_of(group) * cut_.blocks * cut_.splits : 0;
  }
  SE_DEVICE int first(int step) const { return tiles(step, cut_.sweeps_first); }
  SE_DEVICE int second(int step) const { return tiles(step - cut_.lag, cut_.sweeps_second); }
  SE_DEVICE int first_fc(int step) const {
    return is_group(step - cut_.first_fc_lag) ? cut_.first_fc_items : 0;
  }
  SE_DEVICE int second_fc(int step) const {
    return is_group(step - cut_.second_fc_lag) ? cut_.second_fc_items : 0;
  }
  SE_DEVICE int size_of(int step) const {
    return first(step) + second(step) + first_fc(step) + second_fc(step);
  }
  SE_DEVICE Item within(int i) const {
    if (i < first_fc(step_)) return {Kind::first_fc, {step_ - cut_.first_fc_lag, i, 0}};
    i -= first_fc(step_);
    if (i < second_fc(step_)) return {Kind::second_fc, {step_ - cut_.second_fc_lag, i, 0}};
    i -= second_fc(step_);
    const int a = first(step_), b = second(step_), both = a < b ? a : b;
    const bool is_first = i < 2 * both ? i % 2 == 0 : a > b;
    const int index = i < 2 * both ? i / 2 : i - both;
    const int group = is_first ? step_ : step_ - cut_.lag;
    return {is_first ? Kind::first_sweep : Kind::second_sweep,
            part_of(cut_, group * cut_.images, index)};
  }

  const Cut& cut_;
  int images_, step_ = 0, before_ = 0;
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

// work(item) for the items that this block draws; the next ticket is under way meanwhile.
template <class Work>
SE_DEVICE void work_off(const Counters& counters, const Cut& cut, int images, int* words,
                        const Work& work) {
  Items items(cut, images);
  std::uint32_t ticket = 0;
  if (thread_index() == 0) ticket = take(counters.tickets());
  for (;;) {
    block_barrier();  // all are done with the item before
    if (thread_index() == 0) {
      const Item item = items.at(int(ticket));
      words[0] = int(item.kind), words[1] = item.part.n;
      words[2] = item.part.block, words[3] = item.part.split;
      if (item.kind != Kind::none) ticket = take(counters.tickets());
    }
    block_barrier();
    const Item item{Kind(words[0]), {words[1], words[2], words[3]}};
    if (item.kind == Kind::none) return;
    work(item);
  }
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
