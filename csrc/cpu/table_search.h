// The inner loops of quantizing a row to a pyramid-table code (core/table_codes.h), one table of
// functions for each instruction set and width. All give the same bits: products and sums are
// rounded one by one, and sums over a row run in 32 interleaved partial sums, group g in partial
// g % 32, which are then added up pairwise (l + 16 to l, l + 8 to l, ...) in float64.
#pragma once

#include <stdint.h>

namespace pvq {

// Groups that are worked on together: the partial sums, two vectors of AVX-512.
constexpr int kSearchGroups = 32;

// For points y nearest to the magnitudes m of a row: sum of <m, y>, and sum of <y, y>.
struct TableFit {
  double product, square;
};

struct TableSearch {
  // The magnitudes of w [groups, dim] times factors[0] times factors[1], in descending order within
  // each group, as sorted [blocks of 32 groups][dim][32]; zeros where there is no group.
  void (*sort)(const float* w, int64_t groups, const float* factors, float* sorted);

  // The sum of the squares of what `sort` gave.
  double (*energy)(const float* sorted, int64_t groups);

  // The points nearest to sorted / scale, without saying which.
  TableFit (*fit)(const float* sorted, int64_t groups, float scale);

  // code [groups]: the bytes of the points nearest to w / scale, for `sorted` made of w and scale
  // in the units of `sorted`; names as core/table_codes.h has them.
  void (*name)(const float* w, const float* sorted, int64_t groups, float scale,
               const uint8_t* names, uint8_t* code);
};

// For 2, 3 or 4 bits, the table of the instruction set in use (isa.h).
const TableSearch& table_search(int bits);

extern const TableSearch table_search_portable[3];
#ifdef PVQ_X86
extern const TableSearch table_search_avx2[3];
extern const TableSearch table_search_avx512[3];
#endif

}  // namespace pvq
