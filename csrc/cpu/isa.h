// Which instruction set the CPU kernels use: chosen once, from what the machine has and what the
// environment variable PVQ_CPU (portable, avx2, avx512, amx) allows. Results do not depend on it
// where they are integers; floating-point results differ by rounding only.
#pragma once

namespace pvq {

enum class Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAmx = 3 };

Isa cpu_isa();
const char* isa_name(Isa isa);
// True if this machine could run `isa`, whatever PVQ_CPU says.
bool isa_supported(Isa isa);

}  // namespace pvq
