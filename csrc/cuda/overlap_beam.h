// The beam search of overlapping-pyramid codes (core/overlap_beam.h) on the GPU: what
// cpu/overlap_beam.h finds, bit for bit.
#pragma once

#include "cuda/overlap_search.h"

namespace pvq {

// task.table is [rows][terms][dim]. `beam` paths are kept, as many as there are states at most.
// Bytes of device memory beside the results, kMostSearchBytes at most unless one sequence takes
// more.
int64_t overlap_beam_workspace(const OverlapSearchTask& task, int beam);

// As overlap_search_cuda.
int overlap_beam_cuda(const OverlapSearchTask& task, int beam, void* workspace, void* stream);

}  // namespace pvq
