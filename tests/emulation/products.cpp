// Runs a product kernel of csrc/cuda on the CPU (machine.h):
//
//   products table ROWS COLS TOKENS BITS BLOCK SEED RESIDUAL PROCESSORS < operands > y
//   products lapped ROWS COLS TOKENS PAIR_BITS BLOCK SEED RESIDUAL PROCESSORS < operands > y
//   products plane ROWS COLS TOKENS BITS BLOCK SEED GROUP PROCESSORS < operands > y
//   products points COUNT DIM PULSES TYPE < x > y, amplitude, amplitude * y
//   products table_points ROWS COLS TOKENS BITS DIM LARGEST PROCESSORS < operands > y
//   products lapped_points ROWS COLS TOKENS PAIR_BITS DIM LARGEST PROCESSORS < operands > y
//   products plane_expand ROWS COLS BITS GROUP < fragments, row_scale > w
//   products overlap ROWS COLS DIM STEP_BITS WINDOW_BITS LAG SPREAD < codes > w
//   products index ROWS COLS TOKENS DIM PULSES GAIN_BITS BLOCK SEED PROCESSORS
//       < levels, operands > y
//   products index_expand ROWS COLS DIM PULSES GAIN_BITS < levels, fragments, row_scale > w
//
// operands: fragments, row_scale [ROWS] bfloat16, x [TOKENS, COLS] float16, or the points' integers
// and amplitudes; y [TOKENS, ROWS] float16. TYPE: of x [COUNT, DIM], a RealType. codes: of the
// stored form, row_scale, the table; w [ROWS, COLS] float32, of planes and an index float16.
// levels: [2^GAIN_BITS] float32.
#include <cstdio>
#include <string>

#include "cuda/activation_points.h"
#include "cuda/index_tables.h"
#include "cuda/overlap_dequantize.h"
#include "cuda/plane_matmul.h"
#include "cuda/product_task.h"
#include "cuda/table_matmul.h"
#include "machine.h"
#include "memory.h"

using emulation::Memory;

namespace {

pvq::DeviceLimits limits{0, 227 * 1024, 9};

void write(const Memory& m) { std::fwrite(m.at, 1, m.size, stdout); }

}  // namespace

namespace pvq {
const DeviceLimits& device_limits() { return limits; }
}  // namespace pvq

int expand_overlap(char** argv) {
  pvq::OverlapView code{};
  code.rows = std::atoi(argv[2]), code.cols = std::atoi(argv[3]);
  code.trellis = {std::atoi(argv[4]), std::atoi(argv[5]), std::atoi(argv[6]), std::atoi(argv[7])};
  code.spread = std::atoi(argv[8]);
  code.trellis.spread = code.spread > 0;
  const Memory codes = Memory::read(code.rows * code.row_bytes());
  const Memory row_scale = Memory::read(code.rows * 2);
  const Memory table = Memory::read(code.trellis.rows() * 2 * code.trellis.dim);
  const Memory w(code.rows * code.cols * 4);
  code.code = codes.at;
  code.row_scale = reinterpret_cast<const uint16_t*>(row_scale.at);
  code.table = reinterpret_cast<const int8_t*>(table.at);
  const int error = pvq::overlap_dequantize_cuda(code, pvq::RealType::kFloat32, w.at, nullptr);
  write(w);
  return error;
}

int round_points(char** argv) {
  pvq::PointsTask task{};
  task.count = std::atoi(argv[2]), task.dim = std::atoi(argv[3]), task.pulses = std::atoi(argv[4]);
  task.type = pvq::RealType(std::atoi(argv[5]));
  const int64_t size = task.count * task.dim;
  const Memory x = Memory::read(size * (task.type == pvq::RealType::kFloat32 ? 4 : 2));
  const Memory y(size * 2), amplitude(task.count * 2), decoded(int64_t(x.size));
  task.x = x.at;
  task.y = reinterpret_cast<int16_t*>(y.at);
  task.amplitude = reinterpret_cast<uint16_t*>(amplitude.at);
  if (const int error = pvq::activation_points_cuda(task, nullptr)) return error;
  const pvq::PointsOperand points = {task.y, task.amplitude, task.dim, task.pulses};
  const int error = pvq::decode_points_cuda(points, task.count, task.type, decoded.at, nullptr);
  write(y), write(amplitude), write(decoded);
  return error;
}

int multiply_points(char** argv) {
  pvq::TableProduct task{};
  task.rows = std::atoi(argv[2]), task.cols = std::atoi(argv[3]), task.tokens = std::atoi(argv[4]);
  const int bits = std::atoi(argv[5]);
  task.format = std::string(argv[1]) == "lapped_points" ? pvq::TableFormat::overlapping(bits)
                                                        : pvq::TableFormat::table(bits);
  task.points.dim = std::atoi(argv[6]), task.points.largest = std::atoi(argv[7]);
  limits.multiprocessors = std::atoi(argv[8]);
  const Memory fragments = Memory::read(task.format.fragment_bytes(task.rows, task.cols));
  const Memory row_scale = Memory::read(task.rows * 2);
  const Memory point = Memory::read(task.tokens * task.cols * 2);
  const Memory amplitude = Memory::read(task.tokens * (task.cols / task.points.dim) * 2);
  const Memory y(task.tokens * task.rows * 2);
  task.fragments = fragments.at;
  task.row_scale = reinterpret_cast<const uint16_t*>(row_scale.at);
  task.points.y = reinterpret_cast<const int16_t*>(point.at);
  task.points.amplitude = reinterpret_cast<const uint16_t*>(amplitude.at);
  task.type = pvq::RealType::kFloat16;
  task.y = y.at;
  const Memory workspace(pvq::table_product_workspace(task));
  task.workspace = workspace.at;
  const int error = pvq::table_product_cuda(task, nullptr);
  write(y);
  return error;
}

// The form of an exact index, as index_form_cuda makes it.
struct IndexMemory {
  IndexMemory(int dim, int pulses, int gain_bits)
      : levels(Memory::read(4 << gain_bits)),
        tables(pvq::Regions::get(dim, pulses), gain_bits, reinterpret_cast<float*>(levels.at)),
        memory(int64_t(tables.bytes.size())) {
    std::memcpy(memory.at, tables.bytes.data(), tables.bytes.size());
  }
  pvq::IndexForm form() const { return tables.at(memory.at); }

  Memory levels;
  pvq::IndexTables tables;
  Memory memory;
};

int64_t index_bytes(int64_t rows, int64_t cols, int dim, const pvq::IndexForm& form) {
  return pvq::tiles_of(rows) * (cols / pvq::kChunkCols) * pvq::index_chunk_bytes(dim, form.bits);
}

int expand_index(char** argv) {
  const int64_t rows = std::atoi(argv[2]), cols = std::atoi(argv[3]);
  const int dim = std::atoi(argv[4]);
  limits.multiprocessors = 3;
  const IndexMemory index(dim, std::atoi(argv[5]), std::atoi(argv[6]));
  const Memory fragments = Memory::read(index_bytes(rows, cols, dim, index.form()));
  const Memory row_scale = Memory::read(rows * 2), w(rows * cols * 2);
  const int error =
      pvq::index_expand_cuda(fragments.at, reinterpret_cast<const uint16_t*>(row_scale.at), rows,
                             cols, dim, index.form(), pvq::RealType::kFloat16, w.at, nullptr);
  std::fwrite(w.at, 1, w.size, stdout);
  return error;
}

int multiply_index(char** argv) {
  pvq::IndexProduct task{};
  task.rows = std::atoi(argv[2]), task.cols = std::atoi(argv[3]);
  task.tokens = std::atoi(argv[4]), task.dim = std::atoi(argv[5]);
  task.block = std::atoi(argv[8]), task.seed = uint64_t(std::atoi(argv[9]));
  limits.multiprocessors = std::atoi(argv[10]);
  const IndexMemory index(task.dim, std::atoi(argv[6]), std::atoi(argv[7]));
  task.form = index.form();
  const Memory fragments = Memory::read(index_bytes(task.rows, task.cols, task.dim, task.form));
  const Memory row_scale = Memory::read(task.rows * 2),
               x = Memory::read(task.tokens * task.cols * 2);
  const Memory y(task.tokens * task.rows * 2);
  task.fragments = fragments.at;
  task.row_scale = reinterpret_cast<const uint16_t*>(row_scale.at);
  task.x = x.at, task.y = y.at;
  task.type = pvq::RealType::kFloat16;
  task.workspace = Memory(pvq::index_product_workspace(task)).at;
  const int error = pvq::index_product_cuda(task, nullptr);
  std::fwrite(y.at, 1, y.size, stdout);
  return error;
}

int expand_planes(char** argv) {
  const int64_t rows = std::atoi(argv[2]), cols = std::atoi(argv[3]);
  const int bits = std::atoi(argv[4]), group = std::atoi(argv[5]);
  limits.multiprocessors = 1;
  const Memory fragments = Memory::read(pvq::tiles_of(rows) * (cols / pvq::kChunkCols) *
                                        pvq::plane_chunk_bytes(bits, group));
  const Memory row_scale = Memory::read(rows * 2), w(rows * cols * 2);
  const int error =
      pvq::plane_expand_cuda(fragments.at, reinterpret_cast<const uint16_t*>(row_scale.at), rows,
                             cols, bits, group, pvq::RealType::kFloat16, w.at, nullptr);
  write(w);
  return error;
}

int main(int, char** argv) {
  if (std::string(argv[1]) == "overlap") return expand_overlap(argv);
  if (std::string(argv[1]) == "points") return round_points(argv);
  if (std::string(argv[1]).ends_with("_points")) return multiply_points(argv);
  if (std::string(argv[1]) == "index") return multiply_index(argv);
  if (std::string(argv[1]) == "index_expand") return expand_index(argv);
  if (std::string(argv[1]) == "plane_expand") return expand_planes(argv);
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
  write(y);
  return error;
}
