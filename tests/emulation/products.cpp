// Runs a product kernel of csrc/cuda on the CPU (machine.h):
//
//   products table ROWS COLS TOKENS BITS BLOCK SEED RESIDUAL PROCESSORS < operands > y
//   products lapped ROWS COLS TOKENS STEP_BITS BLOCK SEED RESIDUAL PROCESSORS < operands > y
//   products plane ROWS COLS TOKENS BITS BLOCK SEED GROUP PROCESSORS < operands > y
//   products overlap ROWS COLS STEP_BITS WINDOW_BITS LAG < codes > w
//
// operands: fragments, row_scale [ROWS] bfloat16, x [TOKENS, COLS] float16; y [TOKENS, ROWS]
// float16. codes: of the stored form, row_scale, the table; w [ROWS, COLS] float32.
#include <cstdio>
#include <string>

#include "cuda/overlap_dequantize.h"
#include "cuda/plane_matmul.h"
#include "cuda/product_task.h"
#include "cuda/table_matmul.h"
#include "machine.h"
#include "memory.h"

using emulation::Memory;

namespace {

pvq::DeviceLimits limits{0, 227 * 1024, 9};

}  // namespace

namespace pvq {
const DeviceLimits& device_limits() { return limits; }
}  // namespace pvq

int expand_overlap(char** argv) {
  pvq::OverlapView code{};
  code.rows = std::atoi(argv[2]), code.cols = std::atoi(argv[3]);
  code.trellis = {pvq::kOverlapDim, std::atoi(argv[4]), std::atoi(argv[5]), std::atoi(argv[6])};
  const Memory codes = Memory::read(code.rows * code.row_bytes());
  const Memory row_scale = Memory::read(code.rows * 2);
  const Memory table = Memory::read(code.trellis.rows() * 2 * pvq::kOverlapDim);
  const Memory w(code.rows * code.cols * 4);
  code.code = codes.at;
  code.row_scale = reinterpret_cast<const uint16_t*>(row_scale.at);
  code.table = reinterpret_cast<const int8_t*>(table.at);
  const int error = pvq::overlap_dequantize_cuda(code, pvq::RealType::kFloat32, w.at, nullptr);
  std::fwrite(w.at, 1, w.size, stdout);
  return error;
}

int main(int, char** argv) {
  if (std::string(argv[1]) == "overlap") return expand_overlap(argv);
  const bool plane = std::string(argv[1]) == "plane";
  const int64_t rows = std::atoi(argv[2]), cols = std::atoi(argv[3]);
  const int tokens = std::atoi(argv[4]), bits = std::atoi(argv[5]), block = std::atoi(argv[6]);
  const auto seed = uint64_t(std::atoi(argv[7]));
  const int option = std::atoi(argv[8]);
  limits.multiprocessors = std::atoi(argv[9]);

  const int64_t chunks = pvq::tiles_of(rows) * (cols / pvq::kChunkCols);
  const pvq::TableFormat format = std::string(argv[1]) == "lapped"
                                      ? pvq::TableFormat::overlapping(bits)
                                      : pvq::TableFormat::table(bits);
  const Memory fragments = Memory::read(plane ? chunks * pvq::plane_chunk_bytes(bits, option)
                                              : format.fragment_bytes(rows, cols));
  const Memory row_scale = Memory::read(rows * 2), x = Memory::read(tokens * cols * 2);
  const Memory y(tokens * rows * 2);
  const auto run = [&](auto task, auto workspace_bytes, auto product) {
    task.fragments = fragments.at;
    task.row_scale = reinterpret_cast<const uint16_t*>(row_scale.at);
    task.x = x.at, task.y = y.at;
    task.rows = rows, task.cols = cols, task.tokens = tokens;
    task.block = block, task.seed = seed;
    task.type = pvq::RealType::kFloat16;
    task.workspace = Memory(workspace_bytes(task)).at;
    return product(task, nullptr);
  };
  int error;
  if (plane) {
    pvq::PlaneProduct task{};
    task.bits = bits, task.group = option;
    error = run(task, pvq::plane_product_workspace, pvq::plane_product_cuda);
  } else {
    pvq::TableProduct task{};
    task.format = format, task.residual = option != 0;
    error = run(task, pvq::table_product_workspace, pvq::table_product_cuda);
  }
  std::fwrite(y.at, 1, y.size, stdout);
  return error;
}
