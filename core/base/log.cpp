#include "core/base/log.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <mutex>

#include "core/base/text.h"

namespace adanat {
namespace {
bool g_quiet = false;
bool g_bar_visible = false;
std::mutex g_stderr;

void line(const std::string& text) {
  const std::lock_guard lock(g_stderr);
  std::fprintf(stderr, "%s%s\n", g_bar_visible ? "\r\033[K" : "", text.c_str());
  g_bar_visible = false;
}
}  // namespace

void set_quiet(bool quiet) {
  g_quiet = quiet;
}

void note(const std::string& message) {
  if (!g_quiet) line(one_line(message));
}

void warning(const std::string& message) {
  line("warning: " + one_line(message));
}

double monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string format_duration(double seconds) {
  char text[64];
  const int64_t s = int64_t(std::llround(seconds));
  if (seconds < 10) {
    std::snprintf(text, sizeof text, "%.1f s", seconds);
  } else if (s < 60) {
    std::snprintf(text, sizeof text, "%lld s", static_cast<long long>(s));
  } else if (s < 3600) {
    std::snprintf(text, sizeof text, "%lld min %02lld s", static_cast<long long>(s / 60),
                  static_cast<long long>(s % 60));
  } else {
    std::snprintf(text, sizeof text, "%lld h %02lld min", static_cast<long long>(s / 3600),
                  static_cast<long long>(s % 3600 / 60));
  }
  return text;
}

Progress::Progress(std::string title, int64_t total, std::string unit, int64_t start)
    : title_(std::move(title)),
      unit_(std::move(unit)),
      total_(total),
      start_(start),
      started_at_(monotonic_seconds()),
      terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (terminal_ && drawn_) {
    const std::lock_guard lock(g_stderr);
    if (g_bar_visible) std::fputs("\r\033[K", stderr);
    g_bar_visible = false;
  }
}

void Progress::update(int64_t done, const std::string& extra) {
  if (g_quiet) return;
  const double now = monotonic_seconds();
  const bool last = done >= total_;
  if (!last && now - drawn_at_ < (terminal_ ? 0.2 : 10.0)) return;
  if (!terminal_ && (done == start_ || done == shown_)) return;
  drawn_at_ = now;
  shown_ = done;
  draw(done, extra, last);
}

void Progress::draw(int64_t done, const std::string& extra, bool last) {
  const double elapsed = monotonic_seconds() - started_at_;
  const double rate = elapsed > 0 ? double(done - start_) / elapsed : 0;
  char numbers[160];
  std::snprintf(numbers, sizeof numbers, "%s %lld/%lld %s, %.*f/s", title_.c_str(),
                static_cast<long long>(done), static_cast<long long>(total_), unit_.c_str(),
                rate < 10 ? 2 : 0, rate);
  std::string text = numbers;
  if (last) {
    text += ", took " + format_duration(elapsed);
  } else if (rate > 0) {
    text += ", " + format_duration(double(total_ - done) / rate) + " left";
  }
  if (!extra.empty()) text += "  " + extra;
  if (!terminal_) {
    line(text);
    return;
  }
  constexpr int kWidth = 20;
  const int filled = total_ > 0 ? int(std::min<int64_t>(kWidth, done * kWidth / total_)) : kWidth;
  const std::string bar =
      "[" + std::string(size_t(filled), '#') + std::string(size_t(kWidth - filled), '.') + "] ";
  const std::lock_guard lock(g_stderr);
  std::fprintf(stderr, "\r\033[K%s%s%s", bar.c_str(), text.c_str(), last ? "\n" : "");
  std::fflush(stderr);
  g_bar_visible = !last;
  drawn_ = true;
}

}  // namespace adanat
