// SIGINT, SIGTERM and SIGHUP ask a running command to save what it can and leave.
#pragma once

namespace adanat {

// From now on SIGINT, SIGTERM and SIGHUP (unless it is ignored, as under nohup) only set a flag; a second
// SIGINT or SIGTERM ends the process at once.
void install_interrupt_handlers();

// The signal that asked for the end, or 0. Async-signal-safe.
int interrupt_signal();

// Throws Interrupted if a signal asked for the end. Long loops call it between units of work.
void check_interrupt();

}  // namespace adanat
