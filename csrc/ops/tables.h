// The arguments of the operators of table codes, checked: the same on every device.
#pragma once

#include "cpu/table_code.h"
#include "ops/checks.h"

namespace pvq::ops {

void check_table_bits(const char* op, int64_t bits);

// `name` is what the message calls the number of columns.
void check_table_columns(const char* op, const char* name, int64_t cols);

// The stored form, contiguous (copied if need be), with the tensors that keep its memory alive.
struct StoredTable {
  TableView view;
  Tensor code, row_scale;
};

StoredTable checked_table(const char* op, const Tensor& code, const Tensor& row_scale, int64_t bits,
                          int64_t cols);

// Rows and columns of the weights to quantize, float32.
void check_table_weights(const char* op, const Tensor& w, int64_t bits);
[[noreturn]] void refuse_table_row(int64_t row);

}  // namespace pvq::ops
