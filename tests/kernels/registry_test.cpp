// Every operator of ours has all its versions, and the set of operators is the one written here: an object
// file that the linker dropped cannot pass by being absent.
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "kernels/load.h"

namespace adanat::kernels {
namespace {

TEST(Registry, EveryOperatorHasAllVersions) {
  // Asked for the kernels themselves: a computed one may be torch's fallback.
  std::vector<c10::DispatchKey> keys = {c10::DispatchKey::CPU, c10::DispatchKey::Meta,
                                        c10::DispatchKey::Autograd};
  if (load_cuda_ops()) keys.push_back(c10::DispatchKey::CUDA);
  std::set<std::string> names;
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.rfind("adanat::", 0) != 0) continue;
    names.insert(name.name);
    const auto op = c10::Dispatcher::singleton().findSchema(name).value();
    for (const auto key : keys) {
      EXPECT_TRUE(op.hasKernelForDispatchKey(key)) << name.name << " lacks " << c10::toString(key);
    }
  }
  EXPECT_EQ(names, (std::set<std::string>{"adanat::decode_step", "adanat::nearest_code"}));
}

TEST(Load, SaysWhyNotAndRepeatsItself) {
  std::string reason = "untouched", again;
  const bool loaded = load_cuda_ops(&reason);
  EXPECT_EQ(loaded, reason.empty()) << reason;
  EXPECT_EQ(loaded, load_cuda_ops(&again));
  EXPECT_EQ(reason, again);
}

}  // namespace
}  // namespace adanat::kernels
