// Activations of a product in a launch of their own, which all its blocks then share.
#include "cuda/activations.cuh"

#include <algorithm>

#include "cuda/launch.cuh"

namespace pvq {
namespace {

constexpr int kWarps = 8;
// A warp takes the same columns of several tokens, because what it must know of them costs as much
// as rotating 256 values, if that leaves so many warps; but no more tokens than these.
constexpr int64_t kEnoughWarps = 2048, kMostTokens = 8;

// blockIdx.y takes `tokens` tokens. Rows that pad the last group of them get zeros.
template <ActivationForm kForm>
__global__ void __launch_bounds__(kWarps * 32)
    quantize_kernel(const __grid_constant__ Activations a, const QuantizedActivations out,
                    int tokens, unsigned* counters, int num_counters) {
  const int warp = int(blockIdx.x) * kWarps + threadIdx.x / 32, warps = gridDim.x * kWarps;
  const int first = int(blockIdx.y) * tokens, end = min(first + tokens, a.tokens);
  const PieceRotation rotation(a.block, a.type);
  const PieceShare share(a.block, warp, warps);
  const PieceSigns signs(a, share, 0);
  wait_for_previous_kernel();
  allow_next_kernel();
  if (blockIdx.x == 0 && first == 0)
    for (int i = threadIdx.x; i < num_counters; i += kWarps * 32) counters[i] = 0;
  if (first < end) quantize_tokens<kForm>(a, rotation, signs, out, {first, end}, share);
  const int last = min(first + tokens, (out.rows + a.slots - 1) / a.slots);
  for (int token = max(end, first); token < last; ++token)
    write_padding<kForm>(a, out, token, warp, warps);
}

template <ActivationForm kForm>
int launch(const ProductTask& task, int num_counters, cudaStream_t stream) {
  const Activations& x = task.activations;
  const int64_t warp_cols = std::max(kPieceCols, x.block);
  const int64_t warps = (x.cols + warp_cols - 1) / warp_cols;
  const int64_t tokens = (task.quantized.rows + x.slots - 1) / x.slots;
  const int64_t run = std::clamp<int64_t>(warps * tokens / kEnoughWarps, 1, kMostTokens);
  const dim3 grid = {unsigned((warps + kWarps - 1) / kWarps), unsigned((tokens + run - 1) / run)};
  const auto kernel = quantize_kernel<kForm>;
  return launch_overlapped(kernel, grid, kWarps * 32, 0, stream, x, task.quantized, int(run),
                           task.counters, num_counters);
}

}  // namespace

int quantize_activations(const ProductTask& task, ActivationForm form, int num_counters,
                         cudaStream_t stream) {
  switch (form) {
    case ActivationForm::kInt8Lanes:
      return launch<ActivationForm::kInt8Lanes>(task, num_counters, stream);
    case ActivationForm::kInt8Steps:
      return launch<ActivationForm::kInt8Steps>(task, num_counters, stream);
    default:
      return launch<ActivationForm::kFloat16Steps>(task, num_counters, stream);
  }
}

}  // namespace pvq
