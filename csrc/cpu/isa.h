// Which instruction set the CPU kernels use: chosen once, from what the machine has and what the
// environment variable PVQ_CPU (portable, avx2, avx512, avx512vbmi, amx) allows. Results do not
// depend on it where they are integers; floating-point results differ by rounding only.
#pragma once

namespace pvq {

// Each has all that those before it have.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Vbmi, kAmx };

Isa cpu_isa();
const char* isa_name(Isa isa);
// True if this machine could run `isa`, whatever PVQ_CPU says.
bool isa_supported(Isa isa);

// Of what stands there for each instruction set, the one for that in use.
template <class T>
const T& for_isa(const T& portable, const T& avx2, const T& avx512) {
  return cpu_isa() >= Isa::kAvx512 ? avx512 : cpu_isa() >= Isa::kAvx2 ? avx2 : portable;
}

}  // namespace pvq
