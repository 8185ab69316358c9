// The errors that a person sees: one line that says what is wrong, where (file, key, value) and what to do.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace adanat {

// Base of every error that this program raises on purpose. what() is the whole one-line message, without a
// prefix.
class Error : public std::runtime_error {
 public:
  Error(int exit_code, const std::string& message) : std::runtime_error(message), exit_code_(exit_code) {}
  // Exit status of the process: 1 failed while running, 2 unusable input or usage, 128+n stopped by signal n.
  int exit_code() const noexcept { return exit_code_; }

 private:
  int exit_code_;
};

// Wrong usage, or an input or output that cannot be used: a flag, a file, a key, a path. Exit status 2.
class InputError : public Error {
 public:
  explicit InputError(const std::string& message) : Error(2, message) {}
};

// Something failed while the program ran: disk full, NaN, out of memory. Exit status 1.
class RunError : public Error {
 public:
  explicit RunError(const std::string& message) : Error(1, message) {}
};

// A signal asked for the end, and what could be saved has been. Exit status 128 + signal.
class Interrupted : public Error {
 public:
  explicit Interrupted(int signal)
      : Error(128 + signal, "stopped by signal " + std::to_string(signal)), signal_(signal) {}
  int signal() const noexcept { return signal_; }

 private:
  int signal_;
};

// Joins its arguments as operator<< writes them: throw InputError(cat(path, ": ", n, " bytes")).
template <class... Args>
std::string cat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

}  // namespace adanat
