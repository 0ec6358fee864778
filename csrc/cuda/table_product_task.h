// The launches of the table products by width: one file each, because every instance takes seconds
// to compile.
#pragma once

#include "cuda/product_task.h"
#include "cuda/table_matmul.h"

namespace pvq {

// Up to kNarrowRows rows of activations; warps share a tile's columns.
int table_product_2(const ProductTask& task, int multiprocessors, cudaStream_t stream);
int table_product_3(const ProductTask& task, int multiprocessors, cudaStream_t stream);
int table_product_4(const ProductTask& task, int multiprocessors, cudaStream_t stream);

// Any number; warps own rows. Needs quantized activations with a multiple of table_wide_step rows.
int table_product_wide_2(const ProductTask& task, int multiprocessors, cudaStream_t stream);
int table_product_wide_3(const ProductTask& task, int multiprocessors, cudaStream_t stream);
int table_product_wide_4(const ProductTask& task, int multiprocessors, cudaStream_t stream);

constexpr int table_wide_step(int rows) { return rows <= 16 ? 16 : rows <= 32 ? 32 : 64; }

}  // namespace pvq
