// Overlapping-pyramid codes (core/overlap.h) on the GPU: from the stored form to weights.
#pragma once

#include "cpu/overlap_code.h"
#include "cuda/real_type.h"

namespace pvq {

// w [rows, cols] = row_scale * y, 16-byte aligned, rounded once from float32: the CPU's bits.
// Pointers are device memory. Launches on a stream (a cudaStream_t as void*), neither waits nor
// allocates, and returns a cudaError_t.
int overlap_dequantize_cuda(const OverlapView& code, RealType type, void* w, void* stream);

}  // namespace pvq
