// Products from planes: the choice of the kernel.
#include "cuda/plane_matmul.h"

#include "cuda/float16_wide.h"
#include "cuda/plane_product_task.h"

namespace pvq {
namespace {

// 128 rows of activations at a time multiply faster than 64, but the sums of a group that is cut
// between blocks are twice as many: only with as many groups as blocks, or long runs of each block.
int columns_of(const PlaneProduct& t) {
  constexpr int kLongRun = 24;  // chunks of a block
  if (t.tokens <= 64) return float16_columns(t.tokens);
  const int64_t multiprocessors = device_limits().multiprocessors;
  const int64_t groups = (t.rows + 127) / 128 * ((t.tokens + 127) / 128);
  const bool long_runs = groups * (t.cols / kChunkCols) >= kLongRun * multiprocessors;
  return enough_groups(groups, multiprocessors) || long_runs ? 128 : 64;
}

Float16Layout<PlaneProduct> layout_of(const PlaneProduct& t) {
  return {t, columns_of(t), int(plane_chunk_bytes(t.bits, t.group))};
}

}  // namespace

int64_t plane_product_workspace(const PlaneProduct& t) { return layout_of(t).workspace().bytes(); }

int plane_product_cuda(const PlaneProduct& t, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  ProductTask task{};
  if (const int error = layout_of(t).begin(task, queue)) return error;
  const int processors = device_limits().multiprocessors;
  return t.bits == 4   ? plane_product_4(task, t.group, processors, queue)
         : t.bits == 6 ? plane_product_6(task, t.group, processors, queue)
                       : plane_product_8(task, t.group, processors, queue);
}

}  // namespace pvq
