// The launches of the products from exact indices by dimension: one file each, because every
// instance takes seconds to compile.
#pragma once

#include "cuda/index_matmul.h"
#include "cuda/product_task.h"

namespace pvq {

using IndexLaunch = int(const ProductTask& task, int multiprocessors, cudaStream_t stream);
// Activations in the form and groups of float16_tile.
IndexLaunch index_product_8, index_product_16;
// One or two tokens as IndexNarrowShape supports them, narrowed to int8 with their residuals.
IndexLaunch index_narrow_8, index_narrow_16;

}  // namespace pvq
