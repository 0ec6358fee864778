// Products from exact indices: the choice of the kernel.
#include "cuda/index_matmul.h"

#include "cuda/float16_wide.h"
#include "cuda/index_narrow.h"
#include "cuda/index_product_task.h"

namespace pvq {
namespace {

int chunk_bytes_of(const IndexProduct& t) { return int(index_chunk_bytes(t.dim, t.form.bits)); }

Float16Layout<IndexProduct> layout_of(const IndexProduct& t) {
  return {t, float16_columns(t.tokens), chunk_bytes_of(t), kIndexTableBytes};
}

bool is_narrow(const IndexProduct& t) {
  return IndexNarrowShape::supports(t.tokens, t.cols / kChunkCols);
}

// The workspace of a narrow product: activations, counters of tiles, sums of blocks.
struct NarrowLayout {
  static constexpr ActivationForm kForm = ActivationForm::kInt8Lanes;
  int64_t chunks, rows, activations, counters, partials;

  explicit NarrowLayout(const IndexProduct& t) : chunks(t.cols / kChunkCols), rows(2 * t.tokens) {
    const auto round_up = [](int64_t n) { return (n + 15) / 16 * 16; };
    const WorkSplit split = index_narrow_split(t.rows, chunks, device_limits().multiprocessors);
    activations = round_up(QuantizedActivations::bytes(kForm, chunks, rows));
    counters = round_up(tiles_of(t.rows) * int64_t(sizeof(unsigned)));
    partials = split.blocks / IndexNarrowShape::kWarps * 2 * kTileRows * int64_t(sizeof(float));
  }
  int64_t bytes() const { return activations + counters + partials; }
  void place(const IndexProduct& t, ProductTask* task) const {
    uint8_t* memory = static_cast<uint8_t*>(t.workspace);
    task->quantized = QuantizedActivations::at(memory, kForm, int(chunks), int(rows), kOneGroup);
    task->counters = reinterpret_cast<unsigned*>(memory + activations);
    task->partials = reinterpret_cast<float*>(memory + activations + counters);
  }
};

int narrow_product(const IndexProduct& t, ProductTask& task, cudaStream_t stream) {
  const NarrowLayout layout(t);
  layout.place(t, &task);
  task.weights = t.fragments;
  task.row_scale = t.row_scale;
  task.y = t.y;
  task.activations = {t.x, t.type, int(t.cols), t.tokens, t.block, t.seed, 2, false};
  task.rows = int(t.rows);
  task.chunks = int(layout.chunks);
  if (const int error = quantize_activations(task, layout.kForm, int(tiles_of(t.rows)), stream))
    return error;
  const int processors = device_limits().multiprocessors;
  return t.dim == 8 ? index_narrow_8(task, processors, stream)
                    : index_narrow_16(task, processors, stream);
}

}  // namespace

int64_t index_product_workspace(const IndexProduct& t) {
  return is_narrow(t) ? NarrowLayout(t).bytes() : layout_of(t).workspace().bytes();
}

int index_product_cuda(const IndexProduct& t, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  ProductTask task{};
  task.chunk_bytes = chunk_bytes_of(t);
  task.index = t.form;
  if (is_narrow(t)) return narrow_product(t, task, queue);
  if (const int error = layout_of(t).begin(task, queue)) return error;
  const int processors = device_limits().multiprocessors;
  return t.dim == 8 ? index_product_8(task, processors, queue)
                    : index_product_16(task, processors, queue);
}

}  // namespace pvq
