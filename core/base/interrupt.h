// SIGINT and SIGTERM ask a running command to save what it can and leave.
#pragma once

namespace adanat {

// From now on SIGINT and SIGTERM only set a flag; a second one of the same kind ends the process at once.
void install_interrupt_handlers();

// The signal that asked for the end, or 0. Async-signal-safe.
int interrupt_signal();

// Throws Interrupted if a signal asked for the end. Long loops call it between units of work.
void check_interrupt();

}  // namespace adanat
