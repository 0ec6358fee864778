// Activation points to the bytes that the products of tables multiply: a warp takes 256 columns.
#include "cuda/table_points.h"

#include "core/bfloat16.h"
#include "cuda/activations.cuh"
#include "cuda/launch.cuh"

namespace pvq {
namespace {

constexpr int kWarps = 8;

// blockIdx.y is the token. Rows that pad the last group of tokens get zeros.
template <ActivationForm kForm>
__global__ void __launch_bounds__(kWarps * 32)
    points_kernel(const __grid_constant__ PointsOperand points,
                  const __grid_constant__ Activations a, const QuantizedActivations out,
                  unsigned* counters, int num_counters) {
  const int warp = int(blockIdx.x) * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int token = blockIdx.y;
  wait_for_previous_kernel();
  allow_next_kernel();
  if (blockIdx.x == 0 && token == 0)
    for (int i = threadIdx.x; i < num_counters; i += kWarps * 32) counters[i] = 0;
  if (token >= a.tokens) {
    write_padding<kForm>(a, out, token, warp, gridDim.x * kWarps);
    return;
  }
  ScaleTeam<kForm> team(dynamic_shared(), kWarps);
  const int first = warp * kPieceCols;
  if (team.first_of(warp) * kPieceCols >= a.cols) return;
  // Columns as write_integers takes them; zeros beyond the last.
  const int g = lane / 4, t = lane % 4;
  float v[2][4], amplitude[2];
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    const int column = first + kChunkCols * (g / 4) + 64 * p + 16 * t + 4 * (g % 4);
    uint2 four = make_uint2(0, 0);
    amplitude[p] = 0;
    if (column < a.cols) {
      const int64_t place = int64_t(token) * a.cols + column;
      four = *reinterpret_cast<const uint2*>(points.y + place);
      amplitude[p] = from_bfloat16(points.amplitude[place / points.dim]);
    }
    const uint32_t words[2] = {four.x, four.y};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      v[p][i] = static_cast<float>(static_cast<int16_t>(words[i / 2] >> (16 * (i % 2))));
  }
  if (points_stay_exact(points, kForm)) {
    constexpr int kDigit = 128;
    if (a.slots == 2) {
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i / 4][i % 4] *= 1.0f / kDigit;
      amplitude[0] *= kDigit;
    }
    write_integers<kForm, kDigit>(a, out, token, first, true, amplitude[0], 1.0f, v);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i / 4][i % 4] *= amplitude[i / 4];
    write_int8<kForm>(a, out, token, first, true, 1.0f, team, v);
  }
}

template <ActivationForm kForm>
int launch(const PointsOperand& points, const ProductTask& task, int num_counters,
           cudaStream_t stream) {
  const Activations& x = task.activations;
  const int64_t warps = (x.cols + kPieceCols - 1) / kPieceCols;
  const int64_t tokens = (task.quantized.rows + x.slots - 1) / x.slots;
  const dim3 grid = {unsigned((warps + kWarps - 1) / kWarps), unsigned(tokens)};
  return launch_overlapped(points_kernel<kForm>, grid, kWarps * 32, ScaleTeam<kForm>::bytes(kWarps),
                           stream, points, x, task.quantized, task.counters, num_counters);
}

}  // namespace

int quantize_points(const PointsOperand& points, const ProductTask& task, ActivationForm form,
                    int num_counters, cudaStream_t stream) {
  switch (form) {
    case ActivationForm::kInt8Lanes:
      return launch<ActivationForm::kInt8Lanes>(points, task, num_counters, stream);
    case ActivationForm::kInt8Steps:
      return launch<ActivationForm::kInt8Steps>(points, task, num_counters, stream);
    default:
      return launch<ActivationForm::kInt8LongSteps>(points, task, num_counters, stream);
  }
}

}  // namespace pvq
