#pragma once
// The instruction sets that the CPU loops are compiled for. All give the same bits; only the speed differs.
namespace adanat::kernels {

enum class Isa { kBaseline, kAvx2, kAvx512 };  // x86-64, x86-64-v3, x86-64-v4

bool isa_available(Isa isa);  // compiled in, and this machine has it
Isa best_isa();               // the widest available one
const char* isa_name(Isa isa);

}  // namespace adanat::kernels
