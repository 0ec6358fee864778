// Table codes in their stored form (core/table_codes.h) on the GPU, bit for bit as on the CPU: from
// weights (cpu/table_quantize.h says how the scale is chosen) and back.
//
// Pointers are device memory unless said otherwise. Functions launch on a stream (a cudaStream_t as
// void*), neither wait nor allocate, and return a cudaError_t.
#pragma once

#include <cstdint>

#include "cpu/table_code.h"
#include "cuda/real_type.h"
#include "cuda/refusal.h"

namespace pvq {

// The nearest points to w [rows, cols]. A row that holds NaN or infinity is reported; its codes are
// zero and its scale is NaN.
struct TableQuantizeCuda {
  const float* w;  // 16-byte aligned
  int64_t rows, cols;
  int bits;
  const uint8_t* names;  // host memory: table_names(bits)
  uint8_t* code;
  uint16_t* row_scale;
  Refusal refusal;  // in rows
};
int table_quantize_cuda(const TableQuantizeCuda& task, void* stream);

// w [rows, cols], 16-byte aligned, in float32 rounded once.
int table_dequantize_cuda(const TableView& code, RealType type, void* w, void* stream);

}  // namespace pvq
