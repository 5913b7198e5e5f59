#include "source_lines.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <sstream>

namespace se_kernels::cuda::host {
namespace {

// "/.../cuda_on_host/barriers.cpp:20", but not a kernel of selftest.cu.
bool is_of_the_stand_in(const std::string& line) {
  static const std::string folder = "cuda_on_host/";
  const std::size_t file = line.rfind('/') + 1;
  return file >= folder.size() && line.compare(file - folder.size(), folder.size(), folder) == 0 &&
         line.find(".cu:") == line.npos;
}

Dl_info this_library() {
  Dl_info library{};
  dladdr(reinterpret_cast<const void*>(&lines_of), &library);
  return library;
}

std::uintptr_t start() {
  static const auto at = reinterpret_cast<std::uintptr_t>(this_library().dli_fbase);
  return at;
}

}  // namespace

// That of the call, which is before what it returns to.
std::uintptr_t offset_of(const void* pc) {
  return pc ? reinterpret_cast<std::uintptr_t>(pc) - start() - 1 : 0;
}
const void* pc_at(std::uintptr_t offset) {
  return offset ? reinterpret_cast<const void*>(offset + start() + 1) : nullptr;
}

std::string lines_of(const void* pc, const Call* call) {
  std::ostringstream command;
  command << "addr2line -i -e '" << this_library().dli_fname << "'" << std::hex;
  command << ' ' << offset_of(pc);
  for (; call; call = call->outer) command << ' ' << offset_of(call->pc);

  std::string all, before;
  const std::unique_ptr<FILE, int (*)(FILE*)> output(popen(command.str().c_str(), "r"), pclose);
  char text[4096];
  while (output && std::fgets(text, sizeof text, output.get())) {
    std::string line = text;
    line.erase(line.find_first_of(" \n"));
    if (line.find('?') != line.npos || is_of_the_stand_in(line)) continue;
    line.erase(0, line.rfind('/') + 1);
    if (line == before) continue;
    all += (all.empty() ? "" : all.find(',') == all.npos ? ", called at " : ", ") + line;
    before = line;
  }
  return all.empty() ? "an unknown place" : all;
}

}  // namespace se_kernels::cuda::host
