// Counters that blocks share: others may come between, before and after.
#include "machine.h"

namespace se_kernels::cuda {

using namespace host;

namespace {

std::uint32_t add_one(std::uint32_t* counter, Order order, const void* pc) {
  interrupt();
  observe(&Observer::on_counter, *under_way->running, counter, true, order, pc);
  const std::uint32_t before = (*counter)++;
  interrupt();
  return before;
}

}  // namespace

std::uint32_t take(std::uint32_t* counter) {
  return add_one(counter, Order::relaxed, __builtin_return_address(0));
}

void add_release(std::uint32_t* counter) {
  add_one(counter, Order::release, __builtin_return_address(0));
}

std::uint32_t count_in(std::uint32_t* counter) {
  return add_one(counter, Order::acquire_release, __builtin_return_address(0));
}

std::uint32_t read_count(const std::uint32_t* counter) {
  ask();
  observe(&Observer::on_counter, *under_way->running, counter, false, Order::acquire,
          __builtin_return_address(0));
  return *counter;
}

}  // namespace se_kernels::cuda
