// What a launch of a product needs: its activations, rotated and narrowed to the type that the
// tensor cores multiply, and its task.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/platform.h"
#include "cuda/device_limits.h"
#include "cuda/fragments.h"
#include "cuda/index_form.h"

namespace pvq {

// Activations as a caller has them. Each token makes `slots` rows of the product's small operand:
// its values, and with the residual pass what rounding them left, in steps 254 times finer.
struct Activations {
  const void* x;  // [tokens, cols] of `type`
  RealType type;
  int cols, tokens, block;
  uint64_t seed;
  int slots;  // 1, or 2 with the residual pass
  bool sums;  // whether the product needs QuantizedActivations::sum

  PVQ_HD int rows() const { return tokens * slots; }
};

// How the activations of a product are kept: int8 or float16, and in which order. A section is 128
// bytes of a row and chunk, in 16-byte units.
//   kInt8Lanes     columns in order; units of odd rows are swapped in pairs, so that eight lanes
//                  that read one unit of two rows never meet in a shared-memory bank
//   kInt8Steps     column 32 t + 8 s + 4 h + i at byte 4 t + i of unit 2 s + h: the operand of a
//                  warpgroup's products (wgmma.cuh), whose unit u stands at u ^ (row % 8)
//   kInt8LongSteps the same, with fewer scales
//   kFloat16Steps  two sections b of 64 columns: 16 t + 4 q + 2 h + i of them at value 2 t + i of
//                  unit 2 q + h, swizzled alike
//   kFloat16Rows   the same, with one scale for all columns
enum class ActivationForm { kInt8Lanes, kInt8Steps, kInt8LongSteps, kFloat16Steps, kFloat16Rows };

constexpr int kSectionBytes = 128;
PVQ_HD constexpr int sections_of(ActivationForm form) {  // of a row and chunk
  return form == ActivationForm::kFloat16Steps || form == ActivationForm::kFloat16Rows ? 2 : 1;
}
PVQ_HD constexpr bool has_one_scale(ActivationForm form) {  // a row, that of chunk 0
  return form == ActivationForm::kFloat16Rows;
}

constexpr int kOneGroup = 30;  // group_bits of rows that are all one group

// Columns that share a scale. Products of warpgroups fold their sums where it ends: for many rows
// of activations, where that takes long, there are fewer.
PVQ_HD constexpr int scale_cols(ActivationForm form) {
  return has_one_scale(form)                      ? 1 << 30
         : form == ActivationForm::kInt8Lanes     ? kChunkCols
         : form == ActivationForm::kInt8LongSteps ? 8 * kChunkCols
                                                  : 2 * kChunkCols;
}

// Rotated activations, value = scale * stored, with one scale a row and scale_cols columns, a power
// of two for float16. A group of rows is what a product takes at a time:
//   values [groups, chunks, sections, 2^group_bits rows, 128 bytes]
//   scales [groups, chunks, 2, 2^group_bits rows]  the scales, and what the values sum to if asked
struct QuantizedActivations {
  void* values;
  float* scales;
  int group_chunks;      // of a group, all its columns
  int rows, group_bits;  // rows: a multiple of those of a group, at least Activations::rows()
  int sections;          // of a chunk

  static constexpr int64_t bytes(ActivationForm form, int64_t chunks, int64_t rows) {
    return chunks * rows * (sections_of(form) * kSectionBytes + 2 * int(sizeof(float)));
  }
  // group_bits: log2 of the rows of a group.
  static PVQ_HD QuantizedActivations at(void* memory, ActivationForm form, int64_t chunks, int rows,
                                        int group_bits) {
    uint8_t* values = static_cast<uint8_t*>(memory);
    return {values,
            reinterpret_cast<float*>(values + chunks * rows * sections_of(form) * kSectionBytes),
            int(chunks),
            rows,
            group_bits,
            sections_of(form)};
  }
  PVQ_HD uint8_t* section(int chunk, int section, int row) const {
    return static_cast<uint8_t*>(values) +
           uint64_t(place(chunk * sections + section, group_chunks * sections, row)) *
               kSectionBytes;
  }
  PVQ_HD float& scale(int chunk, int row) const {
    return scales[place(2 * chunk, 2 * group_chunks, row)];
  }
  PVQ_HD float& sum(int chunk, int row) const {
    return scales[place(2 * chunk + 1, 2 * group_chunks, row)];
  }
  // Offset of a unit in its section.
  static PVQ_HD int unit(ActivationForm form, int row, int unit) {
    return (unit ^ (form == ActivationForm::kInt8Lanes ? row & 1 : row & 7)) << 4;
  }

 private:
  // 32 bits: a section is 128 bytes. Of the groups before, `row` counts one part already.
  PVQ_HD uint32_t place(int part, int parts, int row) const {
    const int group = row >> group_bits,
              group_rows = group_bits == kOneGroup ? rows : 1 << group_bits;
    return uint32_t(group * (parts - 1) + part) * group_rows + row;
  }
};

struct ProductTask {
  const uint8_t* weights;  // fragments
  const uint16_t* row_scale;
  void* y;
  Activations activations;
  QuantizedActivations quantized;  // values null: the product quantizes itself
  int rows, chunks;                // chunks of a tile
  // Of the wide products (wide_plan.h): blocks that have written their sums of a group, the sums.
  unsigned* counters;
  float* partials;
  // Of the products from exact indices (index_matmul.h): bytes of a chunk, and how to read them.
  int chunk_bytes;
  IndexForm index;
};

// Rotates and narrows the activations of a task. Rows of the quantized form beyond those of the
// activations become zeros, and so do `num_counters` counters. Returns a cudaError_t.
int quantize_activations(const ProductTask& task, ActivationForm form, int num_counters,
                         cudaStream_t stream);
// The same for those with one scale a token (activation_rows.cu).
int quantize_activation_rows(const ProductTask& task, int num_counters, cudaStream_t stream);

// A block of four warps of the kernel that narrows activations fits beside one of a product with
// few rows of activations: a quarter of an SM has 512 registers for each of 32 lanes, of which
// launches take a multiple of 8 a thread.
constexpr int kBesideRegisters = 72;
// Whether a product that takes so many rows of activations at a time leaves that room.
PVQ_HD constexpr bool room_beside(int columns) { return columns <= 32; }
constexpr int registers_beside(int warps) { return (512 - kBesideRegisters) / (warps / 4) / 8 * 8; }

// Of codes that a block copies before the previous kernel ends: what an SM of an H200 gets from
// memory in the 1.5 us from the block's start to that end.
constexpr int kEarlyBytes = 64 * 1024;

}  // namespace pvq
