// The functions of csrc/cuda in a build without nvcc: each launch returns kCudaUnavailable.
#include "cuda/activation_points.h"
#include "cuda/cuda.h"
#include "cuda/decode.h"
#include "cuda/encode.h"
#include "cuda/hadamard.h"
#include "cuda/index_matmul.h"
#include "cuda/overlap_beam.h"
#include "cuda/overlap_dequantize.h"
#include "cuda/overlap_search.h"
#include "cuda/plane_matmul.h"
#include "cuda/table_fragments.h"
#include "cuda/table_matmul.h"
#include "cuda/table_stored.h"

namespace pvq {

bool built_with_cuda() { return false; }
int cuda_device_count() { return 0; }
const char* cuda_error_string(int) {
  return "this build of pvq has no CUDA kernels: install nvcc (CUDA 12.8 or newer), then build "
         "again";
}

bool cuda_is_capturing(void*) { return false; }
uint64_t cuda_capture_id(void*) { return 0; }
int cuda_read_word(const void*, uint64_t*, void*) { return kCudaUnavailable; }

int nearest_cuda(const NearestCuda&, void*) { return kCudaUnavailable; }
int encode_cuda(const EncodeCuda&, void*) { return kCudaUnavailable; }
int64_t quantize_cuda_workspace(const QuantizeCuda&) { return 0; }
int quantize_cuda(const QuantizeCuda&, void*, void*) { return kCudaUnavailable; }
int decode_cuda(const IndexStreams&, int16_t*, void*) { return kCudaUnavailable; }
int dequantize_cuda(const CodeView&, RealType, void*, void*) { return kCudaUnavailable; }
int check_codes_cuda(const IndexStreams&, const Refusal&, void*) { return kCudaUnavailable; }

int activation_points_cuda(const PointsTask&, void*) { return kCudaUnavailable; }
int decode_points_cuda(const PointsOperand&, int64_t, RealType, void*, void*) {
  return kCudaUnavailable;
}

int64_t hadamard_cuda_workspace(const HadamardCuda&) { return 0; }
int hadamard_cuda(const HadamardCuda&, void*, void*) { return kCudaUnavailable; }

int table_expand_cuda(const uint8_t*, const uint16_t*, int64_t, int64_t, TableFormat, RealType,
                      void*, void*) {
  return kCudaUnavailable;
}
int fragments_from_codes_cuda(const TableWords&, const uint8_t*, int64_t, int64_t, int, uint8_t*,
                              void*) {
  return kCudaUnavailable;
}
int codes_from_fragments_cuda(const uint8_t*, int64_t, int64_t, int, uint8_t*, void*) {
  return kCudaUnavailable;
}
int rows_from_fragments_cuda(const FragmentRows&, void*) { return kCudaUnavailable; }
int table_quantize_cuda(const TableQuantizeCuda&, void*) { return kCudaUnavailable; }
int table_dequantize_cuda(const TableView&, RealType, void*, void*) { return kCudaUnavailable; }
int overlap_dequantize_cuda(const OverlapView&, RealType, void*, void*) { return kCudaUnavailable; }
bool overlap_search_supported(const OverlapTrellis&) { return true; }
int64_t overlap_search_workspace(const OverlapSearchTask&) { return 0; }
int overlap_search_cuda(const OverlapSearchTask&, void*, void*) { return kCudaUnavailable; }
int64_t overlap_beam_workspace(const OverlapSearchTask&, int) { return 0; }
int overlap_beam_cuda(const OverlapSearchTask&, int, void*, void*) { return kCudaUnavailable; }
bool products_supported() { return false; }
bool product_block_supported(int64_t) { return false; }
int64_t table_product_workspace(const TableProduct&) { return 0; }
int table_product_cuda(const TableProduct&, void*) { return kCudaUnavailable; }
int64_t plane_product_workspace(const PlaneProduct&) { return 0; }
int plane_product_cuda(const PlaneProduct&, void*) { return kCudaUnavailable; }
int plane_expand_cuda(const uint8_t*, const uint16_t*, int64_t, int64_t, int, int, RealType, void*,
                      void*) {
  return kCudaUnavailable;
}
int index_form_cuda(const Regions&, int, const float*, IndexForm*) { return kCudaUnavailable; }
int64_t index_product_workspace(const IndexProduct&) { return 0; }
int index_product_cuda(const IndexProduct&, void*) { return kCudaUnavailable; }
int index_expand_cuda(const uint8_t*, const uint16_t*, int64_t, int64_t, int, const IndexForm&,
                      RealType, void*, void*) {
  return kCudaUnavailable;
}

}  // namespace pvq
