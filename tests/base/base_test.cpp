#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>

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

TEST(Interrupt, FirstSignalIsAFlagSecondEnds) {
  EXPECT_EXIT(
      {
        install_interrupt_handlers();
        std::raise(SIGTERM);
        if (interrupt_signal() != SIGTERM) _exit(1);
        try {
          check_interrupt();
        } catch (const Interrupted& e) {
          _exit(e.exit_code());
        }
        _exit(2);
      },
      ::testing::ExitedWithCode(143), "");
  EXPECT_EXIT(
      {
        install_interrupt_handlers();
        std::raise(SIGTERM);
        std::raise(SIGTERM);
        _exit(0);
      },
      ::testing::KilledBySignal(SIGTERM), "");
}

TEST(Log, Durations) {
  EXPECT_EQ(format_duration(4.06), "4.1 s");
  EXPECT_EQ(format_duration(200), "3 min 20 s");
  EXPECT_EQ(format_duration(3725), "1 h 02 min");
}

}  // namespace
}  // namespace adanat
