// Runs the search of overlapping-pyramid codes of csrc/cuda on the CPU (machine.h):
//
//   search ROWS GROUPS DIM STEP_BITS WINDOW_BITS LAG TERMS BEAM GIVEN PROCESSORS SHARED_KIB
//          SPREAD < operands > results
//
// GIVEN: letters for what is given beside x and the table: w weight, s start, e end; r for a ring.
// operands: x, table, and those, in this order; results: start, cost, symbol.
#include "cuda/overlap_search.h"

#include <cstring>

#include "cuda/overlap_beam.h"
#include "cuda/product_task.h"
#include "machine.h"
#include "memory.h"

using emulation::Memory;

namespace {
pvq::DeviceLimits limits{0, 227 * 1024, 9};
}  // namespace

namespace pvq {
const DeviceLimits& device_limits() { return limits; }
}  // namespace pvq

int main(int, char** argv) {
  pvq::OverlapSearchTask task{};
  task.rows = std::atoi(argv[1]), task.groups = std::atoi(argv[2]);
  task.trellis = {std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[5]), std::atoi(argv[6]),
                  std::atoi(argv[7])};
  const int beam = std::atoi(argv[8]);  // 0: exact
  const auto given = [&](char letter) { return std::strchr(argv[9], letter) != nullptr; };
  limits.multiprocessors = std::atoi(argv[10]);
  limits.shared = std::atoi(argv[11]) * 1024;
  task.spread = float(std::atof(argv[12]));
  task.trellis.spread = task.spread > 0;
  if (!beam && !pvq::overlap_search_supported(task.trellis)) return 1;
  const int64_t cols = task.groups * task.trellis.dim;
  const auto read = [](bool there, int64_t words) { return Memory::read(there ? 4 * words : 0); };
  const Memory x = read(true, task.rows * cols);
  const Memory table = read(true, task.trellis.terms * task.trellis.rows() * task.trellis.dim);
  const Memory weight = read(given('w'), cols);
  const Memory start = read(given('s'), task.rows), end = read(given('e'), task.rows);
  task.x = x.as<float>(), task.table = table.as<float>();
  if (given('w')) task.weight = weight.as<float>();
  if (given('s')) task.start = start.as<int32_t>();
  if (given('e')) task.end = end.as<int32_t>();
  task.ring = given('r');
  const Memory symbol(task.rows * task.groups), began(4 * task.rows), cost(4 * task.rows);
  task.symbol = symbol.at, task.began = began.as<int32_t>(), task.cost = cost.as<float>();
  const Memory workspace(beam ? pvq::overlap_beam_workspace(task, beam)
                              : pvq::overlap_search_workspace(task));
  const int error = beam ? pvq::overlap_beam_cuda(task, beam, workspace.at, nullptr)
                         : pvq::overlap_search_cuda(task, workspace.at, nullptr);
  for (const Memory& result : {began, cost, symbol}) result.write();
  return error;
}
