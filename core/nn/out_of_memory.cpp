#include "core/nn/out_of_memory.h"

#include <string>

namespace adanat {

bool is_out_of_memory(const c10::Error& error) {
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) return true;
  const std::string what = error.what_without_backtrace();
  for (const char* words : {"can't allocate memory", "out of memory", "ALLOC_FAILED"})
    if (what.find(words) != std::string::npos) return true;
  return false;
}

}  // namespace adanat
