// SPDX-License-Identifier: Apache-2.0
// The peers of this build, loaded where they are there.
#pragma once

#include "peer.hpp"

#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <dlfcn.h>

namespace bench {

/// Every peer that this build has. Libraries take one thread a call, which they read from the environment when they are
/// loaded, and see none of each other's symbols.
inline std::vector<peer> const& peers() {
  static std::vector<peer> const loaded = [] {
    for (char const* name : {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS"}) setenv(name, "1", 1);
    std::vector<peer> found;
    std::istringstream files(MOIETY_BENCH_PEER_FILES);
    for (std::string file; std::getline(files, file, ':');) {
      void* const module = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
      if (module == nullptr) continue;
      auto const get = reinterpret_cast<peers_function*>(dlsym(module, "moiety_bench_peers"));
      int count = 0;
      if (get == nullptr) continue;
      peer const* const given = get(&count);
      found.insert(found.end(), given, given + count);
    }
    return found;
  }();
  return loaded;
}

/// A problem as a peer has prepared it; empty where the peer cannot.
class peer_plan {
 public:
  peer_plan(peer const& from, problem const& p) : from_(from), plan_(from.prepare(p), from.release) {}
  explicit operator bool() const { return plan_ != nullptr; }
  void operator()(std::int64_t expert, void const* a, void const* b, float* out) const {
    from_.run(plan_.get(), expert, a, b, out);
  }

 private:
  peer from_;
  std::unique_ptr<void, void (*)(void*)> plan_;
};

}  // namespace bench
