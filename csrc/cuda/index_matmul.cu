// Products from exact indices: the choice of the kernel.
#include "cuda/index_matmul.h"

#include "cuda/float16_wide.h"
#include "cuda/index_product_task.h"

namespace pvq {
namespace {

int chunk_bytes_of(const IndexProduct& t) { return int(index_chunk_bytes(t.dim, t.form.bits)); }

Float16Layout<IndexProduct> layout_of(const IndexProduct& t) {
  return {t, float16_columns(t.tokens), chunk_bytes_of(t), kIndexTableBytes};
}

}  // namespace

int64_t index_product_workspace(const IndexProduct& t) { return layout_of(t).workspace().bytes(); }

int index_product_cuda(const IndexProduct& t, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  ProductTask task{};
  task.chunk_bytes = chunk_bytes_of(t);
  task.index = t.form;
  if (const int error = layout_of(t).begin(task, queue)) return error;
  const int processors = device_limits().multiprocessors;
  return t.dim == 8 ? index_product_8(task, processors, queue)
                    : index_product_16(task, processors, queue);
}

}  // namespace pvq
