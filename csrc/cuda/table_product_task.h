// The launches of the products of tables by format: one file each, because every instance takes
// seconds to compile.
#pragma once

#include "cuda/product_task.h"
#include "cuda/table_matmul.h"
#include "cuda/wide_plan.h"

namespace pvq {

// One row of activations of so many columns is rotated by every block of a narrow product, which
// then takes no other launch.
constexpr int64_t kMostFusedColumns = 16 * 1024;

// Blocks take kNarrowRows rows of activations each; warps share a tile's columns.
using ProductLaunch = int(const ProductTask& task, int multiprocessors, cudaStream_t stream);
ProductLaunch table_product_2, table_product_3, table_product_4;
ProductLaunch overlap_product_4, overlap_product_5, overlap_product_6, overlap_product_7,
    overlap_product_8;

// Any number; warpgroups own rows. Needs activations in groups of table_wide_columns and in the
// form of table_wide_tile.
ProductLaunch table_product_wide_2, table_product_wide_3, table_product_wide_4;
ProductLaunch overlap_product_wide_4, overlap_product_wide_5, overlap_product_wide_6,
    overlap_product_wide_7, overlap_product_wide_8;

// Formats of which decoding takes longest: it is worth more there to decode what many rows of
// activations need once, and to give the groups of a small matrix to more blocks.
PVQ_HD constexpr bool decodes_slowly(TableFormat format) {
  return format.overlap || format.half_bits == 8;
}

// Rows of activations that a wide product takes at a time: all up to 128, or less if that leaves
// too few groups for the device, unless groups are so long that to cut them between blocks costs
// little.
inline int table_wide_columns(TableFormat format, int rows, int64_t weight_rows, int64_t chunks,
                              int multiprocessors) {
  constexpr int kLongRun = 48;  // chunks of a block
  int columns = rows <= 16 ? 16 : rows <= 32 ? 32 : rows <= 64 ? 64 : 128;
  const int64_t row_groups = (weight_rows + kWarpgroupRows - 1) / kWarpgroupRows;
  const auto groups = [&] { return row_groups * ((rows + columns - 1) / columns); };
  const auto few = [&] {
    const bool long_runs = columns == 64 && decodes_slowly(format) &&
                           groups() * chunks >= int64_t(kLongRun) * multiprocessors;
    return !enough_groups(groups(), multiprocessors) && !long_runs;
  };
  while (columns > 32 && few()) columns /= 2;
  // A last group that is half empty costs as much as a full one.
  if (columns == 128 && (rows - 1) % 128 < 64 && rows < 256) columns = 64;
  return columns;
}
// 128 columns need the registers of two warpgroups, which read them for 128 rows. From 64 on to
// fold sums takes long: fewer scales.
PVQ_HD constexpr WideTile table_wide_tile(TableFormat format, int columns) {
  return {columns,
          columns == 128 ? 2 : 4,
          columns <= 64 ? 4 : 2,
          columns <= 32 ? ActivationForm::kInt8Steps : ActivationForm::kInt8LongSteps,
          format.chunk_bytes(),
          true,
          format.table_words() == 256,
          columns == 32 && decodes_slowly(format) ? 3 : 6};
}

}  // namespace pvq
