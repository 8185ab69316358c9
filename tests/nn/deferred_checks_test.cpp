#include "core/nn/deferred_checks.h"

#include <ATen/ops/zeros.h>

#include <string>

#include "core/base/error.h"
#include "support/message_of.h"
#include "support/support.h"

namespace adanat {
namespace {
using testing::message_of;

at::Tensor flags(std::initializer_list<bool> values) {
  at::Tensor out = at::zeros({int64_t(values.size())}, at::kBool);
  bool* to = out.mutable_data_ptr<bool>();
  for (const bool value : values) *to++ = value;
  return out;
}

DeferredChecks::Failure numbered(const char* what) {
  return [what](int64_t i) { return cat(what, " ", i); };
}

TEST(DeferredChecks, ThrowOnTheCpuWhereTheyAreNoted) {
  DeferredChecks checks;
  checks.expect(flags({true, true}), numbered("first"));
  EXPECT_FALSE(checks.flags().defined()) << "answered already";
  EXPECT_EQ(message_of<RunError>([&] {
              checks.expect(flags({true, false, false}), numbered("second"));
            }),
            "second 1");
  checks.settle();
}

TEST(DeferredChecks, WaitWhereAskedTo) {
  DeferredChecks checks(/*at_once=*/false);
  checks.expect(flags({true, true}), numbered("first"));
  checks.expect(flags({true, false, true, false}).view({2, 2}), numbered("second"));
  checks.expect(flags({false})[0], "third");
  EXPECT_EQ(checks.flags().sizes(), at::IntArrayRef{7});
  EXPECT_EQ(message_of<RunError>([&] { checks.settle(); }), "second 1")
      << "the first that fails, counted within its own";
  EXPECT_FALSE(checks.flags().defined()) << "forgotten once told";
  EXPECT_EQ(message_of<RunError>([&] { checks.settle(); }), "no error");
  checks.expect(flags({false})[0], "third");
  EXPECT_EQ(message_of<RunError>([&] { checks.settle(checks.flags()); }), "third");
}

TEST(DeferredChecks, SayOnTheDeviceThatSomethingFailed) {
  DeferredChecks checks(/*at_once=*/false);
  const auto failed = [&](std::initializer_list<bool> now) {
    return checks.failed_with(flags(now)).item<float>();
  };
  EXPECT_EQ(failed({true, true}), 0);
  EXPECT_EQ(failed({true, false}), 1);
  checks.expect(flags({true}), "first");
  EXPECT_EQ(failed({true}), 0);
  checks.expect(flags({true, false}), "second");
  checks.expect(flags({true}), "third");
  EXPECT_EQ(failed({true}), 1) << "whatever came after";
  EXPECT_EQ(message_of<RunError>([&] { checks.settle(); }), "second");
  EXPECT_EQ(failed({true}), 0);
}

TEST(DeferredChecks, WaitOnADeviceThatMustBeAsked) {
  DeferredChecks checks;
  checks.expect(at::zeros({3}, at::TensorOptions(at::kBool).device(at::kMeta)), "far away");
  EXPECT_EQ(message_of<RunError>([&] { checks.settle(flags({true, true, false})); }), "far away");
}

}  // namespace
}  // namespace adanat
