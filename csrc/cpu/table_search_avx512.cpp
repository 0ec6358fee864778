// TableSearch for AVX-512.
#ifdef PVQ_X86
#include "cpu/table_search.h"

#include "core/table_codes.h"

namespace {

typedef float Float __attribute__((vector_size(64)));
typedef int32_t Int __attribute__((vector_size(64)));

#include "cpu/table_search_loops.h"

}  // namespace

const pvq::TableSearch pvq::table_search_avx512[3] = {Search<2>::table(), Search<3>::table(),
                                                      Search<4>::table()};
#endif
