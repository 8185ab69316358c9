#include "core/base/interrupt.h"

#include <csignal>

#include "core/base/error.h"

namespace adanat {
namespace {
volatile std::sig_atomic_t g_signal = 0;

void on_signal(int signal) {
  // A terminal that is closed sends its hang-up twice, from the shell and from the kernel.
  if (g_signal != 0 && signal == SIGHUP) return;
  if (g_signal != 0) {
    // Asked twice: the default action ends the process.
    std::signal(signal, SIG_DFL);
    std::raise(signal);
    return;
  }
  g_signal = signal;
}
}  // namespace

void install_interrupt_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction before = {};
  sigaction(SIGHUP, nullptr, &before);
  if (before.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);
}

int interrupt_signal() {
  return g_signal;
}

void check_interrupt() {
  if (g_signal != 0) throw Interrupted(g_signal);
}

}  // namespace adanat
