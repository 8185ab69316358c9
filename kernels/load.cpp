#include "kernels/load.h"

#include <dlfcn.h>

#include <cstdlib>

namespace adanat::kernels {
namespace {

struct Outcome {
  bool loaded = false;
  std::string reason;
};

Outcome load() {
  // CUDA's own way to say that no GPU shall be seen. Its libraries take most of a second to load.
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible != nullptr && *visible == '\0') return {false, "CUDA_VISIBLE_DEVICES is empty"};
  static const char anchor = 0;  // any address in this library
  Dl_info info;
  if (dladdr(&anchor, &info) == 0 || info.dli_fname == nullptr)
    return {false, "cannot find the operator library's own file"};
  const std::string self = info.dli_fname;
  const size_t slash = self.rfind('/');
  const std::string path =
      (slash == std::string::npos ? "" : self.substr(0, slash + 1)) + "libadanat_ops_cuda.so";
  // RTLD_GLOBAL: torch looks its CUDA hooks up by name. Never closed: torch keeps pointers into it.
  if (dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr) return {true, ""};
  const char* error = dlerror();
  return {false, error != nullptr ? error : "dlopen failed for " + path};
}

}  // namespace

bool load_cuda_ops(std::string* reason) {
  static const Outcome outcome = load();
  if (reason != nullptr) *reason = outcome.reason;
  return outcome.loaded;
}

}  // namespace adanat::kernels
