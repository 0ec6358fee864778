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
constexpr int registers_of(Place place) { return place == Place::kBeside ? kBesideRegisters : 128; }

// blockIdx.y takes `tokens` tokens. Rows that pad the last group of them get zeros.
template <int kInputs, ActivationForm kForm, Place kPlace>
__global__ void __maxnreg__(registers_of(kPlace))
    quantize_kernel(const __grid_constant__ Activations a, const QuantizedActivations out,
                    int tokens, unsigned* counters, int num_counters) {
  constexpr int kWarps = warps_of(kPlace);
  allow_next_kernel();
  const int warp = int(blockIdx.x) * kWarps + threadIdx.x / 32, warps = gridDim.x * kWarps;
  const int first = int(blockIdx.y) * tokens, end = min(first + tokens, a.tokens);
  const PieceRotation rotation(a.block, a.type);
  const PieceShare share{warp, warps};
  const PieceSigns signs(a, share, 0);
  const ScaleTeam<kForm> team{reinterpret_cast<float*>(dynamic_shared()), kWarps};
  wait_for_previous_kernel();
  if (blockIdx.x == 0 && first == 0)
    for (int i = threadIdx.x; i < num_counters; i += kWarps * 32) counters[i] = 0;
  if (first < end)
    quantize_share<kInputs, kForm>(a, rotation, signs, out, {first, end}, share, team);
  const int last = min(first + tokens, (out.rows + a.slots - 1) / a.slots);
  for (int token = max(end, first); token < last; ++token)
    write_padding<kForm>(a, out, token, warp, warps);
}

template <int kInputs, ActivationForm kForm>
int launch_inputs(const ProductTask& task, int num_counters, cudaStream_t stream) {
  const Activations& x = task.activations;
  const int64_t warps = (x.cols + kPieceCols - 1) / kPieceCols;
  const int64_t tokens = (task.quantized.rows + x.slots - 1) / x.slots;
  const auto start = [&](auto kernel, int block_warps, int64_t run) {
    const dim3 grid = {unsigned((warps + block_warps - 1) / block_warps),
                       unsigned((tokens + run - 1) / run)};
    const cudaError_t error = prefer_shared_memory(kernel);
    if (error != cudaSuccess) return error;
    return launch_overlapped(kernel, grid, block_warps * 32, ScaleTeam<kForm>::bytes(block_warps),
                             stream, x, task.quantized, int(run), task.counters, num_counters);
  };
  // Beside products there are few warps. Where most of them had to take two pieces or more, that
  // would take longer than a launch in between.
  const QuantizedActivations& out = task.quantized;
  const bool room = out.group_bits == kOneGroup || room_beside(1 << out.group_bits);
  const int64_t beside = warps_of(Place::kBeside) * device_limits().multiprocessors;
  const int64_t pieces = warps * tokens;
  if (room && 4 * pieces <= 7 * beside)
    return start(quantize_kernel<kInputs, kForm, Place::kBeside>, warps_of(Place::kBeside),
                 (pieces + beside - 1) / beside);
  // A warp takes the same columns of several tokens, because what it must know of them costs as
  // much as rotating 256 values, if that leaves so many warps; but no more tokens than these.
  constexpr int64_t kEnoughWarps = 2048, kMostTokens = 8;
  return start(quantize_kernel<kInputs, kForm, Place::kBetween>, warps_of(Place::kBetween),
               std::clamp<int64_t>(pieces / kEnoughWarps, 1, kMostTokens));
}

template <ActivationForm kForm>
int launch(const ProductTask& task, int num_counters, cudaStream_t stream) {
  switch (inputs_of(task.activations.block)) {
    case 1:
      return launch_inputs<1, kForm>(task, num_counters, stream);
    case 2:
      return launch_inputs<2, kForm>(task, num_counters, stream);
    default:
      return launch_inputs<4, kForm>(task, num_counters, stream);
  }
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
    default:
      return launch<ActivationForm::kFloat16Steps>(task, num_counters, stream);
  }
}

}  // namespace pvq
