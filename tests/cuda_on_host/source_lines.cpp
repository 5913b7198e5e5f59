#include "source_lines.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>

namespace se_kernels::cuda::host {
namespace {

// "/.../cuda_on_host/barriers.cpp:20", but not a kernel of selftest.cu.
bool is_of_the_stand_in(const std::string& line) {
  static const std::string folder = "cuda_on_host/";
  const std::size_t file = line.rfind('/') + 1;
  return file >= folder.size() && line.compare(file - folder.size(), folder.size(), folder) == 0 &&
         line.find(".cu:") == line.npos;
}

}  // namespace

std::string lines_of(const void* pc, const Call* call) {
  Dl_info module;
  if (dladdr(pc, &module) == 0) return "an unknown place";
  std::string command = std::string("addr2line -i -e '") + module.dli_fname + "'";
  const auto add = [&](const void* place) {  // the call is before what it returns to
    char text[32];
    const std::ptrdiff_t offset =
        static_cast<const char*>(place) - static_cast<const char*>(module.dli_fbase) - 1;
    std::snprintf(text, sizeof text, " %#tx", offset);
    command += text;
  };
  add(pc);
  for (; call; call = call->outer) add(call->pc);

  std::string all, before;
  const std::unique_ptr<FILE, int (*)(FILE*)> output(popen(command.c_str(), "r"), pclose);
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
