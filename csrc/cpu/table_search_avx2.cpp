// TableSearch for AVX2.
#ifdef PVQ_X86
#include "cpu/table_search.h"

#include "core/table_codes.h"

namespace {

typedef float Float __attribute__((vector_size(32)));
typedef int32_t Int __attribute__((vector_size(32)));

#include "cpu/table_search_loops.h"

}  // namespace

const pvq::TableSearch pvq::table_search_avx2[3] = {Search<2>::table(), Search<3>::table(),
                                                    Search<4>::table()};
#endif
