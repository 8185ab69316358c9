// The message of the error that a call throws.
#pragma once
#include <string>

#include "core/base/error.h"

namespace adanat::testing {

// "no error" where the call throws none; errors of other types pass through.
template <class Error = InputError, class Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace adanat::testing
