// The launches of the products of planes by width: one file each, because every instance takes
// seconds to compile.
#pragma once

#include "cuda/plane_matmul.h"
#include "cuda/wide_plan.h"

namespace pvq {

int plane_product_4(const ProductTask& task, int group, int multiprocessors, cudaStream_t stream);
int plane_product_6(const ProductTask& task, int group, int multiprocessors, cudaStream_t stream);
int plane_product_8(const ProductTask& task, int group, int multiprocessors, cudaStream_t stream);

constexpr int plane_step(int rows) { return rows <= 8 ? 8 : rows <= 16 ? 16 : 64; }
PVQ_HD constexpr WideTile plane_wide_tile(int bits, int group, int columns) {
  return {columns,
          columns == 64 ? 2 : 4,
          columns == 8    ? 4
          : columns == 16 ? 2
                          : 1,
          ActivationForm::kFloat16Steps,
          int(plane_chunk_bytes(bits, group)),
          false,
          false};
}

}  // namespace pvq
