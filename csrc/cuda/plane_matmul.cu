// Products from planes: the choice of the kernel.
#include "cuda/plane_matmul.h"

#include "cuda/float16_wide.h"
#include "cuda/plane_product_task.h"

namespace pvq {
namespace {

Float16Layout<PlaneProduct> layout_of(const PlaneProduct& t) {
  return {t, int(plane_chunk_bytes(t.bits, t.group))};
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
