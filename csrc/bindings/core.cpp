// pvq._core: what is not a tensor operator. Exact counts, tables, build information.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "core/count.h"
#include "core/gain.h"
#include "core/table_codes.h"
#include "cpu/isa.h"
#include "cpu/planes.h"
#include "cuda/cuda.h"

namespace py = pybind11;

void bind_hadamard(py::module_& m);  // hadamard.cpp
void bind_regions(py::module_& m);   // regions.cpp

namespace {

py::object exact_count(int dim, int pulses) {
  const std::vector<uint32_t> limbs = pvq::count(dim, pulses);
  const py::bytes bytes(reinterpret_cast<const char*>(limbs.data()), limbs.size() * 4);
  return py::module_::import("builtins").attr("int").attr("from_bytes")(bytes, "little");
}

py::array_t<float> gain_levels(int dim, int64_t cols, int gain_bits, const std::string& law) {
  const std::vector<float>& levels = pvq::gain_levels(dim, cols, gain_bits, pvq::gain_law(law));
  return py::array_t<float>(py::ssize_t(levels.size()), levels.data());
}

py::array_t<int8_t> code_table(int bits) {
  if (bits < 2 || bits > 4)
    throw py::value_error("bits is " + std::to_string(bits) + ", expected 2, 3 or 4");
  const int8_t* points = pvq::table_points(bits);
  py::array_t<int8_t> table({pvq::kTablePoints, pvq::table_dim(bits)});
  std::copy(points, points + table.size(), table.mutable_data());
  return table;
}

std::vector<std::string> supported_instruction_sets() {
  std::vector<std::string> names;
  using pvq::Isa;
  for (auto isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vbmi, Isa::kAmx})
    if (pvq::isa_supported(isa)) names.emplace_back(pvq::isa_name(isa));
  return names;
}

py::dict build_info() {
  py::dict info;
  info["version"] = PVQ_VERSION;
  info["cxx_compiler"] = PVQ_CXX_COMPILER;
  info["torch_headers"] = PVQ_TORCH_BUILD_VERSION;
  info["torch_abi"] = "stable, 2.10 and newer";
  info["cuda"] = pvq::built_with_cuda();
  info["cuda_compiler"] = PVQ_CUDA_COMPILER;
  info["cuda_architectures"] = PVQ_CUDA_ARCHITECTURES;
  info["cuda_devices"] = pvq::cuda_device_count();
  info["cpu_instruction_set"] = pvq::isa_name(pvq::cpu_isa());
  info["cpu_instruction_sets"] = supported_instruction_sets();
  return info;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Exact pyramid counts, gain codebooks and build information.";
  m.def(
      "count", &exact_count, py::arg("dim"), py::arg("pulses"),
      "N(dim, pulses), the number of integer vectors of `dim` coordinates whose magnitudes sum to "
      "`pulses`; exact.");
  m.def("index_bits", &pvq::index_bits, py::arg("dim"), py::arg("pulses"),
        "Bits of a stored index: enough for N(dim, pulses) points and the zero group.");
  m.def("plane_bits", &pvq::plane_bits, py::arg("dim"), py::arg("pulses"),
        "Bits of an integer in the CPU's run-time planes: 4 or 8.");
  m.def("gain_levels", &gain_levels, py::arg("dim"), py::arg("cols"), py::arg("gain_bits"),
        py::arg("law"),
        "The 2**gain_bits amplitude levels in units of the row's root mean square.");
  m.def("code_table", &code_table, py::arg("bits"),
        "The 256 points of the pyramid-table code of 2, 3 or 4 bits, int8 [256, 4 or 2]; at 3 bits "
        "an entry a stands for the magnitude 2 a + 1.");
  m.def(
      "cuda_capture_id",
      [](uintptr_t stream) { return pvq::cuda_capture_id(reinterpret_cast<void*>(stream)); },
      py::arg("stream"),
      "The number of the CUDA graph capture that records the work of a stream (its handle as an "
      "integer), unique in this process; 0 for none.");
  m.def("build_info", &build_info, "What was built and what this machine offers, as a dict.");
  bind_hadamard(m);
  bind_regions(m);
}
