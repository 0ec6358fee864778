// Activations of a product in a launch of their own, which all its blocks then share.
#include "cuda/activations.cuh"

#include "cuda/launch.cuh"

namespace pvq {
namespace {

constexpr int kWarps = 8;

// A warp takes kPieces * 256 columns of a token; blockIdx.y is the token. Rows that pad the last
// tokens of a block of the product get zeros.
template <int kPieces, int kItemBytes>
__global__ void __launch_bounds__(kWarps * 32)
    quantize_kernel(const __grid_constant__ Activations a, const QuantizedActivations out) {
  const int64_t first = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * (kPieces * kPieceCols);
  const int token = blockIdx.y;
  const PieceRotation rotation(a.block);
  wait_for_previous_kernel();
  allow_next_kernel();
  if (first >= a.cols) return;
  if (token < a.tokens) {
    quantize_columns<kPieces, kItemBytes>(a, rotation, out, token, first);
    return;
  }
  constexpr int kChunkPieces = kChunkCols * kItemBytes / 16;
  constexpr int kUnits = kPieces * kPieceCols * kItemBytes / 16;
  for (int row = token * a.slots; row < min((token + 1) * a.slots, out.stride); ++row) {
    for (int unit = threadIdx.x % 32; unit < kUnits; unit += 32) {
      const int64_t chunk = first / kChunkCols + unit / kChunkPieces;
      if (chunk * kChunkCols >= a.cols) break;
      *reinterpret_cast<uint4*>(out.piece(chunk, row, unit % kChunkPieces)) =
          make_uint4(0, 0, 0, 0);
      if (unit % kChunkPieces == 0) out.scales[chunk * out.stride + row] = {0, 0};
    }
  }
}

template <int kPieces, int kItemBytes>
int launch(const Activations& x, const QuantizedActivations& out, cudaStream_t stream) {
  const int64_t warps = (x.cols + kPieces * kPieceCols - 1) / (kPieces * kPieceCols);
  const int64_t tokens = (out.stride + x.slots - 1) / x.slots;
  const dim3 grid(unsigned((warps + kWarps - 1) / kWarps), unsigned(tokens));
  const auto kernel = quantize_kernel<kPieces, kItemBytes>;
  return launch_overlapped(kernel, grid, kWarps * 32, 0, 1, stream, x, out);
}

template <int kItemBytes>
int launch(const Activations& x, const QuantizedActivations& out, cudaStream_t stream) {
  switch (pieces_at_once(x.cols, x.block, kWarps)) {
    case 1:
      return launch<1, kItemBytes>(x, out, stream);
    case 2:
      return launch<2, kItemBytes>(x, out, stream);
    default:
      return launch<4, kItemBytes>(x, out, stream);
  }
}

}  // namespace

int quantize_activations(const Activations& x, const QuantizedActivations& out,
                         cudaStream_t stream) {
  return out.item_bytes == 1 ? launch<1>(x, out, stream) : launch<2>(x, out, stream);
}

}  // namespace pvq
