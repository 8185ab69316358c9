// SIGINT, SIGTERM and SIGHUP ask a running command to save what it can and leave.
#pragma once

namespace adanat {

// From now on a thread that does nothing else receives these signals; the calling thread and those that it
// starts do not. First in main(), before there are other threads; threads do not survive a fork(), so not
// before one.
//
// A signal may be answered only where the stack pointer points to a stack. oneDNN's generated float32 product
// (jit_avx512_common_gemm_f32) points it to its workspace on the heap instead; the kernel then writes the
// handler's frame of some 3 KB into whatever lies below, and the process dies later of a damaged heap.
void receive_signals_apart();

// From now on SIGINT, SIGTERM and SIGHUP only set a flag; a SIGINT or SIGTERM a second or more after the
// first ends the process at once. Those that the parent has ignored stay ignored (SIGHUP under nohup, SIGINT
// of what a shell script runs in the background). Does receive_signals_apart() too.
void install_interrupt_handlers();

// The signal that asked for the end, or 0. Async-signal-safe.
int interrupt_signal();

// Throws Interrupted if a signal asked for the end. Long loops call it between units of work.
void check_interrupt();

}  // namespace adanat
