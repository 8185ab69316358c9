#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "core/base/error.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/base/sha256.h"

namespace adanat {
namespace {

TEST(Sha256, KnownAnswers) {
  EXPECT_EQ(sha256_hex("", 0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc", 3), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string million(1'000'000, 'a');
  Sha256 hash;  // in awkward pieces
  for (size_t i = 0, n = 1; i < million.size(); i += n, n = n % 97 + 1)
    hash.update(million.data() + i, std::min(n, million.size() - i));
  EXPECT_EQ(hash.finish(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  EXPECT_THROW(sha256_file("/nonexistent"), InputError);
}

TEST(Errors, CarryTheirExitCodes) {
  EXPECT_EQ(InputError("x").exit_code(), 2);
  EXPECT_EQ(RunError("x").exit_code(), 1);
  EXPECT_EQ(Interrupted(SIGTERM).exit_code(), 143);
  EXPECT_EQ(Interrupted(SIGINT).exit_code(), 130);
  EXPECT_EQ(cat("a", 1, "-", 2.5), "a1-2.5");
}

// Sends `signal` to this process and waits until it was answered.
void send_to_self(int signal) {
  kill(getpid(), signal);
  for (int i = 0; i < 10'000 && interrupt_signal() == 0; ++i) usleep(1'000);
}

[[noreturn]] void be_asked() {
  install_interrupt_handlers();
  send_to_self(SIGTERM);
  if (interrupt_signal() != SIGTERM) _exit(1);
  try {
    check_interrupt();
  } catch (const Interrupted& e) {
    _exit(e.exit_code());
  }
  _exit(2);
}

TEST(Interrupt, FirstSignalIsAFlag) {
  EXPECT_EXIT(be_asked(), ::testing::ExitedWithCode(143), "");
}

// What a shell script runs in the background has SIGINT ignored, what nohup runs SIGHUP.
[[noreturn]] void be_asked_what_is_ignored() {
  for (const int signal : {SIGINT, SIGHUP}) std::signal(signal, SIG_IGN);
  install_interrupt_handlers();
  for (const int signal : {SIGINT, SIGHUP}) kill(getpid(), signal);
  usleep(50'000);
  if (interrupt_signal() != 0) _exit(99);
  send_to_self(SIGTERM);
  _exit(interrupt_signal());
}

TEST(Interrupt, WhatTheParentIgnoredStaysIgnored) {
  EXPECT_EXIT(be_asked_what_is_ignored(), ::testing::ExitedWithCode(SIGTERM), "");
}

// GNU timeout sends its signal twice in a row.
[[noreturn]] void be_asked_by_timeout() {
  install_interrupt_handlers();
  send_to_self(SIGTERM);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) kill(getpid(), signal);
  usleep(50'000);
  _exit(interrupt_signal());
}

TEST(Interrupt, OneThatFollowsAtOnceIsTheSameRequest) {
  EXPECT_EXIT(be_asked_by_timeout(), ::testing::ExitedWithCode(SIGTERM), "");
}

[[noreturn]] void be_asked_again() {
  install_interrupt_handlers();
  send_to_self(SIGTERM);
  sleep(1), usleep(100'000);
  kill(getpid(), SIGHUP);  // a closing terminal is not impatient
  usleep(100'000);
  kill(getpid(), SIGINT);
  sleep(10);
  _exit(0);
}

TEST(Interrupt, OneASecondLaterEnds) {
  EXPECT_EXIT(be_asked_again(), ::testing::KilledBySignal(SIGINT), "");
}

#if defined(__x86_64__)
// Sets *spins and spins until *done, with the stack pointer where no stack is, as oneDNN's generated products
// do. If a signal is answered on this thread, its frame lands in the page below, which may not be written.
void spin_without_a_stack(std::atomic<int>* spins, const std::atomic<int>* done, char* not_a_stack) {
  asm volatile(
      "mov %%rsp, %%r12\n"
      "mov %2, %%rsp\n"
      "movl $1, (%0)\n"
      "1: pause\n"
      "cmpl $0, (%1)\n"
      "je 1b\n"
      "mov %%r12, %%rsp\n"
      :
      : "r"(spins), "r"(done), "r"(not_a_stack)
      : "r12", "memory", "cc");
}

[[noreturn]] void be_asked_without_a_stack() {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  void* const memory = mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(memory, page, PROT_NONE);
  install_interrupt_handlers();
  std::atomic<int> spins{0}, done{0};
  std::thread sender([&] {
    while (spins == 0) usleep(1'000);
    send_to_self(SIGTERM);
    usleep(50'000);
    done = 1;
  });
  spin_without_a_stack(&spins, &done, static_cast<char*>(memory) + page);
  sender.join();
  _exit(interrupt_signal());
}

TEST(Interrupt, IsNotAnsweredWhereThereIsNoStack) {
  EXPECT_EXIT(be_asked_without_a_stack(), ::testing::ExitedWithCode(SIGTERM), "");
}
#endif

TEST(Log, Durations) {
  EXPECT_EQ(format_duration(4.06), "4.1 s");
  EXPECT_EQ(format_duration(200), "3 min 20 s");
  EXPECT_EQ(format_duration(3725), "1 h 02 min");
}

}  // namespace
}  // namespace adanat
