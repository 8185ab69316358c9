// What the tests of all recipes ask.
#pragma once
#include <ATen/Context.h>
#include <ATen/core/Generator.h>

#include <cmath>
#include <string>

#include "core/train/recipe.h"
#include "support/support.h"

namespace adanat::testing {

// NaN where the report has no such value, which no comparison holds for.
inline double value_of(const StepReport& report, const std::string& name) {
  for (const auto& [known, value] : report.values)
    if (known == name) return value.item<double>();
  return NAN;
}

inline TensorMap state_of(const Recipe& recipe) {
  TensorMap out;
  recipe.save(out);
  for (auto& [name, tensor] : out) tensor = tensor.clone();
  return out;
}

struct Halves {
  TensorMap middle, end;  // what is stored after 5 updates and after 10
};

// Ten updates of what `make()` returns against five, saved, loaded into another one and five: equal to the
// bit. `disturb(recipe)` is called before the last five and must not matter.
template <class Make, class Disturb>
Halves expect_resume_is_exact(const Make& make, const Disturb& disturb) {
  const auto whole = make();
  for (int64_t s = 0; s < 10; ++s) whole->step(s);
  Halves out;
  out.end = state_of(*whole);

  const auto first = make();
  for (int64_t s = 0; s < 5; ++s) first->step(s);
  out.middle = state_of(*first);
  at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
  const at::Tensor rng = generator.get_state().clone();

  const auto second = make();
  for (int64_t s = 0; s < 2; ++s) second->step(s);  // whatever it held before must not matter
  generator.set_state(rng);
  second->load(out.middle, "memory");
  disturb(*second);
  for (int64_t s = 5; s < 10; ++s) second->step(s);
  const TensorMap actual = state_of(*second);
  EXPECT_EQ(actual.size(), out.end.size());
  for (const auto& [name, tensor] : out.end) {
    const auto other = actual.find(name);
    EXPECT_TRUE(other != actual.end() && at::equal(other->second, tensor)) << name;
  }
  return out;
}

}  // namespace adanat::testing
