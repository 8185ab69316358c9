// Runs the real binary, as a user does.
#pragma once
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <string>

#include "core/io/atomic_file.h"
#include "support/support.h"

namespace adanat::testing {

struct Outcome {
  int status;  // exit status, or 128 + signal
  std::string out, err;
};

// The program under test: $ADANAT_BINARY (ctest sets it), else the usual build.
inline std::string binary() {
  const char* given = std::getenv("ADANAT_BINARY");
  return given != nullptr ? given : (source_dir() / "build/adanat").string();
}

// `arguments` is a shell fragment; stdout and stderr are captured in `dir`.
inline Outcome adanat_run(const TempDir& dir, const std::string& arguments) {
  const std::string out = (dir / "stdout").string(), err = (dir / "stderr").string();
  // Its cache is the test's own: nothing of an earlier build's features, and nothing left in a home folder.
  const int raw = std::system(("XDG_CACHE_HOME=" + (dir / "cache").string() + " " + binary() + " " +
                               arguments + " >" + out + " 2>" + err)
                                  .c_str());
  const int status = WIFSIGNALED(raw) ? 128 + WTERMSIG(raw) : WEXITSTATUS(raw);
  return {status, read_file(out), read_file(err)};
}

// One line that begins with "error: " and no C++ names or stack traces; possibly after warnings and notes.
inline ::testing::AssertionResult is_one_line_error(const Outcome& outcome, int status,
                                                    const std::string& part) {
  const size_t at = outcome.err.rfind("error: ");
  if (outcome.status != status)
    return ::testing::AssertionFailure()
           << "status " << outcome.status << ", wanted " << status << ": " << outcome.err;
  if (at == std::string::npos || outcome.err.find('\n', at) != outcome.err.size() - 1)
    return ::testing::AssertionFailure() << "not one line: " << outcome.err;
  const std::string line = outcome.err.substr(at);
  if (line.find(part) == std::string::npos)
    return ::testing::AssertionFailure() << "lacks \"" << part << "\": " << line;
  for (const char* bad : {"std::", "at::", "c10::", "Exception raised", "terminate called"})
    if (line.find(bad) != std::string::npos) return ::testing::AssertionFailure() << "C++ inside: " << line;
  return ::testing::AssertionSuccess();
}

}  // namespace adanat::testing
