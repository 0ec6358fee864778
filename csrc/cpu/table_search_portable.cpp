// TableSearch for any machine: vectors of 16 bytes.
#include "cpu/table_search.h"

#include "core/table_codes.h"

namespace {

typedef float Float __attribute__((vector_size(16)));
typedef int32_t Int __attribute__((vector_size(16)));

#include "cpu/table_search_loops.h"

}  // namespace

const pvq::TableSearch pvq::table_search_portable[3] = {Search<2>::table(), Search<3>::table(),
                                                        Search<4>::table()};
