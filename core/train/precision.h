// The precision that a run computes in: float32, or matrix products and convolutions in bfloat16 (autocast).
#pragma once
#include <string>

namespace adanat {

class Recipe;

// The help line of the config key "dtype" in every recipe.
inline constexpr const char* kDtypeHelp =
    "matrix products and convolutions in float32 or bfloat16 (autocast); auto: the faster, timed when a run "
    "begins";

// For validate(): InputError unless "auto", "float32" or "bfloat16".
void require_dtype(const std::string& dtype);

// What "auto" came to, and why: seconds of an update, the mean over the whole run; float32's are infinite
// where a GPU has no memory for it.
struct DtypeChoice {
  std::string dtype;
  double float32_seconds = 0, bfloat16_seconds = 0;
};

// Times whole updates of this recipe in both precisions, by turns: one of each where that is clear (in every
// phase, see Recipe::phases), two where it is not, more while about three seconds last. bfloat16 is chosen
// where it is at least 5 % faster; the recipe is told (set_dtype). Its state and torch's random state are put
// back, so that the run is the one that a given dtype begins. What Recipe::step throws comes through (but for
// c10::OutOfMemoryError in float32), and Interrupted.
DtypeChoice choose_dtype(Recipe& recipe);

}  // namespace adanat
