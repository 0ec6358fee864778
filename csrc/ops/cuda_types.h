// torch's dtypes as kernels name them.
#pragma once

#include "cuda/real_type.h"
#include "ops/checks.h"

namespace pvq::ops {

// For float32, float16 and bfloat16.
inline RealType real_type(ScalarType dtype) {
  return dtype == ScalarType::Half       ? RealType::kFloat16
         : dtype == ScalarType::BFloat16 ? RealType::kBFloat16
                                         : RealType::kFloat32;
}

}  // namespace pvq::ops
