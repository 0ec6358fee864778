// Activations of a product in a launch of their own, which all its blocks then share.
//
// It overlaps the products before and after it. Few activations are narrowed beside them: by
// blocks so small that one fits on every SM next to a product's (product_task.h), where it waits
// for the product before to end. Many activations take whole SMs between the two. In either place
// the product after begins as soon as there is room, fills its tables, and waits for the
// activations.
#include "cuda/activations.cuh"

#include <algorithm>

#include "cuda/launch.cuh"

namespace pvq {
namespace {

enum class Place { kBeside, kBetween };

constexpr int warps_of(Place place) { return place == Place::kBeside ? 4 : 8; }
// Blocks of an SM at a time. The pieces of a block of 512 or 1024 columns take more registers.
constexpr int blocks_of(Place place, int inputs) {
  return place == Place::kBeside ? 1 : inputs == 1 ? 3 : 2;
}
constexpr int registers_of(Place place, int inputs) {
  return place == Place::kBeside
             ? kBesideRegisters
             : 65536 / (32 * warps_of(place) * blocks_of(place, inputs)) / 8 * 8;
}

// Warps take 256 columns each, blockIdx.y `tokens` of all tokens. Those beyond the activations pad
// the last group of them with zeros.
template <int kInputs, ActivationForm kForm, Place kPlace>
__global__ void __maxnreg__(registers_of(kPlace, kInputs))
    quantize_kernel(const __grid_constant__ Activations a, const QuantizedActivations out,
                    int tokens, int all_tokens, unsigned* counters, int num_counters) {
  constexpr int kWarps = warps_of(kPlace);
  allow_next_kernel();
  const int warp = int(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int first = int(blockIdx.y) * tokens, end = min(first + tokens, a.tokens);
  const PieceRotation rotation(a.block, a.type);
  const ScaleTeam<kForm> team(dynamic_shared(), kWarps);
  quantize_tokens<kInputs, kForm, kPlace == Place::kBeside>(a, rotation, out, {first, end}, warp,
                                                            team);
  // Each block some of them, or what does so would be the last.
  const int blocks = gridDim.x * gridDim.y, block = blockIdx.y * gridDim.x + blockIdx.x;
#pragma unroll 1
  for (int i = threadIdx.x * blocks + block; i < num_counters; i += kWarps * 32 * blocks)
    counters[i] = 0;
  const int last = min(first + tokens, all_tokens);
#pragma unroll 1
  for (int token = max(end, first); token < last; ++token)
    write_padding<kForm>(a, out, token, warp, gridDim.x * kWarps);
}

template <int kInputs, ActivationForm kForm>
int launch_inputs(const ProductTask& task, int num_counters, cudaStream_t stream) {
  const Activations& x = task.activations;
  const int64_t warps = (x.cols + kPieceCols - 1) / kPieceCols;
  const int64_t tokens = (task.quantized.rows + x.slots - 1) / x.slots;
  const int multiprocessors = device_limits().multiprocessors;
  // All blocks run at a time, so a warp takes the same columns of several tokens.
  const auto start = [&](auto kernel, Place place) {
    const cudaError_t error = prefer_shared_memory(kernel);
    if (error != cudaSuccess) return error;
    const int64_t across = (warps + warps_of(place) - 1) / warps_of(place);
    const int64_t ranges =
        std::max<int64_t>(1, multiprocessors * blocks_of(place, kInputs) / across);
    const int64_t run = (tokens + ranges - 1) / ranges;
    const dim3 grid = {unsigned(across), unsigned((tokens + run - 1) / run)};
    return launch_overlapped(kernel, grid, warps_of(place) * 32,
                             ScaleTeam<kForm>::bytes(warps_of(place)), stream, x, task.quantized,
                             int(run), int(tokens), task.counters, num_counters);
  };
  // Beside products there are few warps. Where they had to take more pieces than these, that would
  // take longer than a launch in between.
  constexpr int kMostBeside = 2;
  const QuantizedActivations& out = task.quantized;
  const bool room = out.group_bits == kOneGroup || room_beside(1 << out.group_bits);
  if (room && warps * tokens <= kMostBeside * warps_of(Place::kBeside) * multiprocessors)
    return start(quantize_kernel<kInputs, kForm, Place::kBeside>, Place::kBeside);
  return start(quantize_kernel<kInputs, kForm, Place::kBetween>, Place::kBetween);
}

template <ActivationForm kForm>
int launch(const ProductTask& task, int num_counters, cudaStream_t stream) {
  return with_inputs(task.activations.block, [&](auto inputs) {
    return launch_inputs<inputs(), kForm>(task, num_counters, stream);
  });
}

}  // namespace

int quantize_activations(const ProductTask& task, ActivationForm form, int num_counters,
                         cudaStream_t stream) {
  switch (form) {
    case ActivationForm::kInt8Lanes:
      return launch<ActivationForm::kInt8Lanes>(task, num_counters, stream);
    case ActivationForm::kInt8Steps:
      return launch<ActivationForm::kInt8Steps>(task, num_counters, stream);
    case ActivationForm::kInt8LongSteps:
      return launch<ActivationForm::kInt8LongSteps>(task, num_counters, stream);
    case ActivationForm::kFloat16Steps:
      return launch<ActivationForm::kFloat16Steps>(task, num_counters, stream);
    default:
      return quantize_activation_rows(task, num_counters, stream);
  }
}

}  // namespace pvq
