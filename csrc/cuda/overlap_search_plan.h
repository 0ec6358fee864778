// How a search is laid over threads, and the instances of its kernel (overlap_search.cuh).
#pragma once

#include <cuda_runtime.h>

#include "cuda/overlap_search.h"

namespace pvq {

constexpr int kQuad = 4;  // sequences that share the products of points
constexpr int kMostSearchThreads = 512;

struct alignas(16) Four {
  float at[kQuad];
};

// Costs of states, with a gap for each 2^step_bits of them.
PVQ_HD inline int state_places(const OverlapTrellis& t) {
  return t.states() + (t.states() >> t.step_bits);
}

// A set of costs [states] in `history` is of one quad and one group.
struct OverlapSearchPlan {
  OverlapSearchTask task;
  int tile;           // states that a thread finds the costs of: consecutive new symbols
  int quad_threads;   // states / tile
  int quads;          // of a block
  int blocks;         // each works on a quad after another
  int stride;         // groups from a set of costs that is kept to the next
  int64_t sets;       // kept for each quad
  bool shared_costs;  // whether all states' costs stand in shared memory
  int64_t quad_bytes, shared_bytes;
  Four* history;  // [blocks][quads][sets][states]
  Four* costs;    // [blocks][quads][state_places], if not in shared memory
};

// One function for each number of weights of a group, and one for the less usual numbers. Each
// launches the instance for plan.tile.
cudaError_t launch_search_1(const OverlapSearchPlan& plan, cudaStream_t stream);
cudaError_t launch_search_2(const OverlapSearchPlan& plan, cudaStream_t stream);
cudaError_t launch_search_3(const OverlapSearchPlan& plan, cudaStream_t stream);

}  // namespace pvq
