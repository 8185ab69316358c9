// Threads that wait for each other sleep instead of spinning.
//
// libgomp's idle threads spin for milliseconds by default. Where other programs want the cores too, the
// thread that everybody waits for is then kept off its core by those that wait for it, thousands of times an
// image. The variable that changes this is read while libgomp is loaded, before main() and before any
// constructor of ours, and there is no call for it. So the program starts itself once more with it set, as
// early as an executable can: from .preinit_array, when the libraries are mapped but none has run. That costs
// some 25 ms of processor time, the relocations of LibTorch. Whoever sets one of the variables has decided,
// and nothing happens here.
#include <sys/auxv.h>
#include <unistd.h>

#include <climits>
#include <cstring>

namespace {

bool is_set(char** environment, const char* assignment) {
  for (; *environment != nullptr; ++environment)
    if (std::strncmp(*environment, assignment, std::strlen(assignment)) == 0) return true;
  return false;
}

// No library is initialised yet: only system calls, no memory from the heap. If one fails, the program goes
// on as it is.
void start_with_sleeping_threads(int, char** arguments, char** environment) {
  if (is_set(environment, "OMP_WAIT_POLICY=") || is_set(environment, "GOMP_SPINCOUNT=")) return;
  // Started as an argument of the dynamic loader (`ld-linux-x86-64.so.2 adanat ...`), which has none itself:
  // /proc/self/exe is the loader then, and would take the first argument for the program.
  if (::getauxval(AT_BASE) == 0) return;
  constexpr size_t kMost = 4096;
  static char* extended[kMost + 2];
  static char wait_policy[] = "OMP_WAIT_POLICY=passive";
  size_t count = 0;
  for (; environment[count] != nullptr; ++count) {
    if (count == kMost) return;
    extended[count] = environment[count];
  }
  extended[count] = wait_policy;
  static char path[PATH_MAX];
  const ssize_t size = ::readlink("/proc/self/exe", path, sizeof path - 1);
  if (size > 0) ::execve(path, arguments, extended);
}

// A sanitizer's runtime is not up yet either, and instrumented code needs it.
#if !defined(__SANITIZE_ADDRESS__)
__attribute__((section(".preinit_array"),
               used)) void (*const g_before_everything)(int, char**, char**) = start_with_sleeping_threads;
#else
[[maybe_unused]] void (*const g_before_everything)(int, char**, char**) = start_with_sleeping_threads;
#endif

}  // namespace
