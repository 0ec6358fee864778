// Matrices in a pyramid-table code (core/table_codes.h), as the products see them.
#pragma once

#include <cstdint>
#include <memory>

#include "cpu/matmul_tiles.h"
#include "cpu/table_code.h"

namespace pvq {

class TableTiles final : public WeightTiles {
 public:
  TableTiles(const TableView& code, bool transposed);
  int64_t fill(int64_t i0, int64_t i1, int64_t l0, int64_t l1, float* tile,
               int64_t stride) const override;
  std::unique_ptr<Product> make_direct(int64_t tokens) const override;

 private:
  TableView code_;
  bool transposed_;
};

}  // namespace pvq
