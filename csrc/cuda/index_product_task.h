// The launches of the products from exact indices by dimension: one file each, because every
// instance takes seconds to compile.
#pragma once

#include "cuda/index_matmul.h"
#include "cuda/wide_plan.h"

namespace pvq {

int index_product_8(const ProductTask& task, int multiprocessors, cudaStream_t stream);
int index_product_16(const ProductTask& task, int multiprocessors, cudaStream_t stream);

constexpr int index_step(int rows) { return rows <= 8 ? 8 : rows <= 16 ? 16 : 64; }
PVQ_HD constexpr WideTile index_wide_tile(int columns, int chunk_bytes) {
  return {columns,
          columns == 64 ? 2 : 4,
          columns == 8    ? 4
          : columns == 16 ? 2
                          : 1,
          ActivationForm::kFloat16Steps,
          chunk_bytes,
          false,
          false,
          kIndexTableBytes};
}

}  // namespace pvq
