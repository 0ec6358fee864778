// The floating-point types that kernels read and write.
#pragma once

namespace pvq {

enum class RealType { kFloat32, kFloat16, kBFloat16 };

}  // namespace pvq
