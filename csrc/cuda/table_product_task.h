// What a launch of the table product needs, and the launches by width (one file each, because every
// instance takes seconds to compile).
#pragma once

#include "cuda/table_matmul.h"

namespace pvq {

struct Activations {
  const void* x;  // [tokens, cols] of `type`
  FloatType type;
  int64_t cols;
  int tokens, block;
  uint64_t seed;
};

struct ProductTask {
  const uint8_t* fragments;
  const uint16_t* row_scale;
  void* y;
  Activations activations;
  // The quantized activations where they do not fit the shared memory; null for the fused form.
  int8_t* values;
  float* scale;
  float* sum;
  int rows, chunks;  // chunks of a tile
  int passes;        // over the columns; a warp takes J chunks a pass
  int group;         // tiles whose partial sums fit the shared memory
};

int table_product_2(const ProductTask& task, int multiprocessors, void* stream);
int table_product_3(const ProductTask& task, int multiprocessors, void* stream);
int table_product_4(const ProductTask& task, int multiprocessors, void* stream);

}  // namespace pvq
