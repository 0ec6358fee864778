// Products, quotients and roots rounded as IEEE 754 says, whatever the compiler's options.
//
// GPU compilers fuse a product into the addition that uses it, which rounds once instead of twice;
// these they leave alone. (C++ files are compiled with -ffp-contract=off.) Sums need no such
// function: an addition is only ever fused with a product.
#pragma once

#include <cmath>

#include "core/platform.h"

namespace pvq::ieee {

#ifdef __CUDA_ARCH__
PVQ_HD inline float multiply(float a, float b) { return __fmul_rn(a, b); }
PVQ_HD inline float divide(float a, float b) { return __fdiv_rn(a, b); }
PVQ_HD inline float root(float a) { return __fsqrt_rn(a); }
PVQ_HD inline double multiply(double a, double b) { return __dmul_rn(a, b); }
PVQ_HD inline double divide(double a, double b) { return __ddiv_rn(a, b); }
PVQ_HD inline double root(double a) { return __dsqrt_rn(a); }
#else
PVQ_HD inline float multiply(float a, float b) { return a * b; }
PVQ_HD inline float divide(float a, float b) { return a / b; }
PVQ_HD inline float root(float a) { return std::sqrt(a); }
PVQ_HD inline double multiply(double a, double b) { return a * b; }
PVQ_HD inline double divide(double a, double b) { return a / b; }
PVQ_HD inline double root(double a) { return std::sqrt(a); }
#endif

}  // namespace pvq::ieee
