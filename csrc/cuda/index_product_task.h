// The launches of the products from exact indices by dimension: one file each, because every
// instance takes seconds to compile.
#pragma once

#include "cuda/index_matmul.h"
#include "cuda/product_task.h"

namespace pvq {

int index_product_8(const ProductTask& task, int multiprocessors, cudaStream_t stream);
int index_product_16(const ProductTask& task, int multiprocessors, cudaStream_t stream);

}  // namespace pvq
