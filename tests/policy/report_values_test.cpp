#include "policy/report_values.h"

#include <ATen/ops/scalar_tensor.h>

#include "core/base/error.h"
#include "support/message_of.h"
#include "support/support.h"

namespace adanat {
namespace {
using testing::message_of;

using Values = std::vector<std::pair<std::string, double>>;

at::Tensor flag(bool value) {
  return at::scalar_tensor(value, at::kBool);
}

TEST(ReportValues, KeepTheirNames) {
  ReportValues values;
  DeferredChecks checks(/*at_once=*/false);
  EXPECT_EQ(values.take(checks), Values{});
  values.add("host", 3.5);
  EXPECT_EQ(values.take(checks), (Values{{"host", 3.5}}));
  values.add("a", at::scalar_tensor(0.25, at::kFloat));
  values.add("b", at::scalar_tensor(7, at::kLong).view({1}));
  checks.expect(flag(true), "fails");
  EXPECT_EQ(values.take(checks), (Values{{"a", 0.25}, {"b", 7}, {"host", 3.5}}));
  EXPECT_FALSE(checks.flags().defined()) << "settled on the way";
}

TEST(ReportValues, AreNotTakenWhereSomethingFailed) {
  for (const bool valued : {true, false}) {
    ReportValues values;
    if (valued) values.add("a", at::scalar_tensor(0.0, at::kFloat));  // no failure, whatever its value
    DeferredChecks checks(/*at_once=*/false);
    checks.expect(flag(true), "first"), checks.expect(flag(false), "second");
    const std::string text = message_of<RunError>([&] { values.take(checks); });
    EXPECT_EQ(text, "second");
  }
}

}  // namespace
}  // namespace adanat
