// The products from exact indices for one and two tokens (index_narrow.cuh): their shared memory,
// and how they share out their work.
#pragma once

#include <algorithm>

#include "cuda/index_form.h"
#include "cuda/product_task.h"
#include "cuda/work_split.h"

namespace pvq {

struct IndexNarrowShape {
  static constexpr int kWarps = 16, kThreads = 32 * kWarps;
  // Of a thread: the kernel that narrows activations has its place beside this one.
  static constexpr int kRegisters = registers_beside(kWarps);

  static constexpr int kBarrier = kTableAddress + kIndexTableBytes;
  static constexpr int kActivations = kBarrier + 16;
  static PVQ_HD constexpr int token_bytes(int chunks) { return chunks * kChunkCols * 2; }
  // Of one token, one for each chunk.
  static PVQ_HD constexpr int scales(int tokens, int chunks) {
    return kActivations + tokens * token_bytes(chunks);
  }
  // A warp has parts of two tiles, of two tokens, at most.
  static PVQ_HD constexpr int sums(int tokens, int chunks) {
    return scales(tokens, chunks) + tokens * chunks * 4;
  }
  static constexpr int end(int tokens, int chunks) {
    return std::max(sums(tokens, chunks) + kWarps * 4 * kTileRows * 4,
                    kTableAddress + kIndexReachBytes);
  }
  static constexpr bool supports(int tokens, int64_t chunks) {
    constexpr int64_t kMostChunks = 1024;
    return tokens <= 2 && chunks <= kMostChunks && end(tokens, int(chunks)) <= kEndAddress;
  }
};

// Runs of chunks of all warps.
inline WorkSplit index_narrow_split(int64_t rows, int64_t chunks, int multiprocessors) {
  constexpr int kWarps = IndexNarrowShape::kWarps;
  const int64_t steps = tiles_of(rows) * chunks;
  const int64_t blocks = std::min<int64_t>((steps + kWarps - 1) / kWarps, multiprocessors);
  return WorkSplit(steps, int(blocks * kWarps));
}

}  // namespace pvq
