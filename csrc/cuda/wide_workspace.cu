// The memory of a wide product.
#include "cuda/product_task.h"

namespace pvq {
namespace {

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace

WideWorkspace::WideWorkspace(int64_t rows, int64_t chunks, int64_t stride, int item_bytes,
                             int columns) {
  const int64_t groups = (rows + kWideRows - 1) / kWideRows * (stride / columns);
  quantized = round_up(QuantizedActivations::bytes(chunks, stride, item_bytes), 16);
  counters = round_up(groups * int64_t(sizeof(unsigned)), 16);
  partials = int64_t(device_limits().multiprocessors) * kWideSlots * kWideRows * columns *
             int64_t(sizeof(float));
}

void WideWorkspace::place(void* memory, int64_t stride, int item_bytes, ProductTask* task) const {
  uint8_t* bytes = static_cast<uint8_t*>(memory);
  task->quantized = QuantizedActivations::at(bytes, task->chunks, int(stride), item_bytes);
  task->counters = reinterpret_cast<unsigned*>(bytes + quantized);
  task->partials = reinterpret_cast<float*>(bytes + quantized + counters);
}

}  // namespace pvq
