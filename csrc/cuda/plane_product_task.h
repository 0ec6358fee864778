// The launches of the products of planes by width: one file each, because every instance takes
// seconds to compile.
#pragma once

#include "cuda/plane_matmul.h"
#include "cuda/product_task.h"

namespace pvq {

int plane_product_4(const ProductTask& task, int group, int multiprocessors, cudaStream_t stream);
int plane_product_6(const ProductTask& task, int group, int multiprocessors, cudaStream_t stream);
int plane_product_8(const ProductTask& task, int group, int multiprocessors, cudaStream_t stream);

}  // namespace pvq
