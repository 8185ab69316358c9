// Messages for a person, on stderr. Results go to stdout and are printed by the commands themselves.
#pragma once
#include <string>

namespace adanat {

// Whether notes and progress are shown; warnings always are. Set once by the command line (--quiet).
void set_quiet(bool quiet);

void note(const std::string& message);     // plain line, hidden by --quiet
void warning(const std::string& message);  // "warning: ..."

// A live bar on a terminal, plain lines otherwise (at most one every ten seconds, and the last).
// Not thread-safe. Erases its line when destroyed, so that errors stand on a line of their own.
class Progress {
 public:
  // `total` units of work called `unit` ("images", "steps"); `start` of them are done already (resumed runs).
  Progress(std::string title, int64_t total, std::string unit, int64_t start = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  // `done` counts from 0 to total; `extra` is shown behind the numbers (a loss, say).
  void update(int64_t done, const std::string& extra = "");

 private:
  void draw(int64_t done, const std::string& extra, bool last);
  std::string title_, unit_;
  int64_t total_, start_, shown_ = -1;
  double started_at_, drawn_at_ = 0;
  bool terminal_, drawn_ = false;
};

// Seconds of a clock that never runs backwards.
double monotonic_seconds();

// "1 h 02 min", "3 min 20 s", "4.1 s".
std::string format_duration(double seconds);

}  // namespace adanat
