#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#if defined(PVQ_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pvq {
namespace {

constexpr Isa kAll[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vbmi, Isa::kAmx};

// Linux hands out the tile registers only to processes that ask for them.
bool amx_permitted() {
#if defined(PVQ_X86) && defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa choose() {
  Isa best = Isa::kPortable;
  const char* allowed = std::getenv("PVQ_CPU");
  for (Isa isa : kAll) {
    if (isa_supported(isa)) best = isa;
    if (allowed && !std::strcmp(allowed, isa_name(isa))) break;
  }
  return best;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vbmi:
      return "avx512vbmi";
    case Isa::kAmx:
      return "amx";
    default:
      return "portable";
  }
}

bool isa_supported(Isa isa) {
#ifdef PVQ_X86
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi2");
    case Isa::kAvx512:
      return isa_supported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
    case Isa::kAvx512Vbmi:
      return isa_supported(Isa::kAvx512) && __builtin_cpu_supports("avx512vbmi");
    case Isa::kAmx: {
      static const bool usable = isa_supported(Isa::kAvx512Vbmi) &&
                                 __builtin_cpu_supports("avx512bf16") &&
                                 __builtin_cpu_supports("amx-bf16") &&
                                 __builtin_cpu_supports("amx-int8") && amx_permitted();
      return usable;
    }
    default:
      return true;
  }
#else
  return isa == Isa::kPortable;
#endif
}

Isa cpu_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace pvq
