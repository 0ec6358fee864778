// Activations with one scale a token (ActivationForm::kFloat16Rows): a block takes a token, twice:
// for its largest magnitude, then to rotate and narrow it.
//
// No rotated magnitude is above the largest one before times the root of the block of columns. The
// scale makes that bound 2^14 to 2^15: float16 then is as fine as ever for magnitudes down to
// 2^-29 of the bound.
#include <cuda_fp16.h>

#include "cuda/activations.cuh"
#include "cuda/launch.cuh"

namespace pvq {
namespace {

constexpr int kWarps = 16;
// Two blocks an SM, or one where the pieces of a block of 512 or 1024 columns take more.
constexpr int registers_of(int inputs) { return inputs == 1 ? 64 : 128; }

// The largest magnitude of a token's columns, of all threads of the block.
__device__ __forceinline__ float largest_of_token(const Activations& a, const uint16_t* x) {
  // Magnitudes without the sign are in the order of their bits, of either type; NaN is above all.
  uint32_t most = 0;
#pragma unroll 2
  for (int i = threadIdx.x * 8; i < a.cols; i += kWarps * 32 * 8) {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(x + i));
    for (const uint32_t word : {v.x, v.y, v.z, v.w})
      most = max(most, max(word & 0x7FFF, word >> 16 & 0x7FFF));
  }
  most = __reduce_max_sync(~0u, most);
  const uint32_t places = shared_address(dynamic_shared());
  const int lane = threadIdx.x % 32;
  if (lane == 0) store_shared_word(places + threadIdx.x / 32 * 4, most);
  __syncthreads();
  most = __reduce_max_sync(~0u, load_shared_word(places + lane % kWarps * 4));
  __half_raw half;
  half.x = uint16_t(most);
  return a.type == RealType::kFloat16 ? __half2float(__half(half)) : __uint_as_float(most << 16);
}

// blockIdx.x is the token; those beyond the activations pad the last group with zeros.
template <int kInputs>
__global__ void __maxnreg__(registers_of(kInputs))
    quantize_rows_kernel(const __grid_constant__ Activations a, const QuantizedActivations out,
                         unsigned* counters, int num_counters) {
  allow_next_kernel();
  const int token = blockIdx.x, warp = threadIdx.x / 32;
  const PieceRotation rotation(a.block, a.type);
  wait_for_previous_kernel();
  for (int i = threadIdx.x * gridDim.x + token; i < num_counters; i += kWarps * 32 * gridDim.x)
    counters[i] = 0;
  if (token >= a.tokens)
    return write_padding<ActivationForm::kFloat16Rows>(a, out, token, warp, kWarps);

  const uint16_t* x = static_cast<const uint16_t*>(a.x) + int64_t(token) * a.cols;
  const float bound = largest_of_token(a, x) * (a.block > 0 ? sqrtf(float(a.block)) : 1.0f);
  constexpr float kLeast = 1.0f / (1 << 30) / (1 << 30) / (1 << 30);  // whose reciprocal is finite
  const float scale = max_or_nan(power_of_two_below(bound), kLeast) * (1.0f / (1 << 14));
  const float inverse = rotation.factor / scale;
  if (threadIdx.x == 0) out.scale(0, token) = scale;
  rotate_share<kInputs>(a, x, rotation, warp, kWarps, [&](int first, const float (&v)[2][4]) {
    write_halves(a, out, token, first, inverse, v);
  });
}

template <int kInputs>
int launch(const ProductTask& task, int num_counters, cudaStream_t stream) {
  const auto kernel = quantize_rows_kernel<kInputs>;
  const cudaError_t error = prefer_shared_memory(kernel);
  if (error != cudaSuccess) return error;
  return launch_overlapped(kernel, dim3(unsigned(task.quantized.rows)), kWarps * 32,
                           kWarps * sizeof(uint32_t), stream, task.activations, task.quantized,
                           task.counters, num_counters);
}

}  // namespace

int quantize_activation_rows(const ProductTask& task, int num_counters, cudaStream_t stream) {
  return with_inputs(task.activations.block,
                     [&](auto inputs) { return launch<inputs()>(task, num_counters, stream); });
}

}  // namespace pvq
