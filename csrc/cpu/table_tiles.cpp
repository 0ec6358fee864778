#include "cpu/table_tiles.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/matmul_blocks.h"
#include "cpu/table_kernels.h"

namespace pvq {
namespace {

// out [tokens, rows] straight from the stored rows.
class TableProduct final : public Product {
 public:
  TableProduct(const TableView& code, int64_t tokens)
      : code_(code),
        kernels_(table_kernels(code.bits)),
        tokens_(tokens),
        block_columns_(round_down(kBlockFloats / tokens, kernels_.direct_step)) {
    panels_ = divide_up(code.rows, kStoredRows);
    if (kernels_.pack) {
      packed_bytes_ = kernels_.packed_columns(code.cols) * tokens * sizeof(float);
      pack_units_ = divide_up(code.cols, kPackColumns);
    }
  }

  void pack(const float* a, int64_t begin, int64_t end, void* packed) const override {
    kernels_.pack(a, code_.cols, begin * kPackColumns, std::min(end * kPackColumns, code_.cols),
                  int(tokens_), static_cast<float*>(packed));
  }

  int64_t multiply(const void* packed, int64_t begin, int64_t end, float* out) const override {
    const auto* x = static_cast<const float*>(packed);
    for_row_panels(code_, begin, end, tokens_, out,
                   [&](int64_t r0, int64_t count, const float* scale) {
                     for (int64_t c0 = 0; c0 < code_.cols; c0 += block_columns_)
                       kernels_.direct(code_.row(r0), code_.row_bytes(), count, code_.cols, c0,
                                       std::min(c0 + block_columns_, code_.cols), scale, x,
                                       int(tokens_), out + r0, code_.rows);
                   });
    return kNoRow;
  }

 private:
  static constexpr int64_t kPackColumns = 1024;

  const TableView& code_;
  const TableKernels& kernels_;
  const int64_t tokens_, block_columns_;
};

}  // namespace

const TableKernels& table_kernels(int bits) {
#ifdef PVQ_X86
  return for_isa(table_kernels_portable[bits - 2], table_kernels_avx2[bits - 2],
                 table_kernels_avx512[bits - 2]);
#else
  return table_kernels_portable[bits - 2];
#endif
}

// Transposed, lanes are columns, and so many of them are decoded at once.
constexpr int64_t kTransposedLanes = 64;

TableTiles::TableTiles(const TableView& code, bool transposed)
    : WeightTiles(transposed ? code.rows : code.cols, transposed ? code.cols : code.rows,
                  transposed ? 1 : kTableStep, transposed ? kTransposedLanes : 1),
      code_(code),
      transposed_(transposed) {}

int64_t TableTiles::fill(int64_t i0, int64_t i1, int64_t l0, int64_t l1, float* tile,
                         int64_t stride) const {
  if (transposed_) {
    for (int64_t row = i0; row < i1; ++row, tile += stride) {
      dequantize_table(code_, row, l0, l1, tile);
      std::fill(tile + (l1 - l0), tile + round_up(l1 - l0, kTileLanes), 0.0f);
    }
    return kNoRow;
  }
  for (int64_t l = l0; l < l1; l += kTileLanes) {
    const uint8_t* rows[kTileLanes];
    float scale[kTileLanes];
    for (int64_t lane = 0; lane < kTileLanes; ++lane) {  // a lane without a row is zero
      rows[lane] = code_.row(std::min(l + lane, l1 - 1));
      scale[lane] = l + lane < l1 ? code_.scale(l + lane) : 0.0f;
    }
    table_kernels(code_.bits).fill(rows, code_.cols, i0, i1, scale, tile + (l - l0), stride);
  }
  return kNoRow;
}

std::unique_ptr<Product> TableTiles::make_direct(int64_t tokens) const {
  if (transposed_ || tokens > table_kernels(code_.bits).direct_tokens) return nullptr;
  return std::make_unique<TableProduct>(code_, tokens);
}

}  // namespace pvq
