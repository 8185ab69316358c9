#include "core/base/interrupt.h"

#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/base/error.h"

namespace adanat {
namespace {

// Written by the thread that receives signals, read by all.
std::atomic<int> g_signal{0};
static_assert(std::atomic<int>::is_always_lock_free);  // what a handler may touch
timespec g_first = {};                                 // when it came; only the handler looks at it

// GNU timeout sends its signal to the program and then to the program's group; a terminal that is closed
// sends its hang-up from the shell and from the kernel.
constexpr double kSameRequestSeconds = 1;

double seconds_between(const timespec& a, const timespec& b) {
  return double(b.tv_sec - a.tv_sec) + 1e-9 * double(b.tv_nsec - a.tv_nsec);
}

void on_signal(int signal) {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (g_signal == 0) {
    g_first = now;
    g_signal = signal;
    return;
  }
  if (signal == SIGHUP || seconds_between(g_first, now) < kSameRequestSeconds) return;
  // Asked again: the default action ends the process.
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void start_receiver() {
  sigset_t ours, before;
  sigemptyset(&ours);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&ours, signal);
  pthread_sigmask(SIG_BLOCK, &ours, &before);
  try {
    std::thread([before] {
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      for (;;) pause();
    }).detach();
  } catch (const std::system_error&) {
    // No thread to be had: libgomp will say so. Until then signals come as they did.
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
}

}  // namespace

void receive_signals_apart() {
  static std::once_flag started;
  std::call_once(started, start_receiver);
}

void install_interrupt_handlers() {
  receive_signals_apart();
  struct sigaction action = {};
  action.sa_handler = on_signal;
  // One at a time, and those that come meanwhile after it: the receiver's state needs no lock.
  sigfillset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before = {};
    sigaction(signal, nullptr, &before);
    if (before.sa_handler != SIG_IGN) sigaction(signal, &action, nullptr);
  }
}

int interrupt_signal() {
  return g_signal;
}

void check_interrupt() {
  if (g_signal != 0) throw Interrupted(g_signal);
}

}  // namespace adanat
