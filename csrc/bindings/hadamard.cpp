// pvq._core: which Hadamard blocks there are, and their matrices.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>

#include "core/hadamard_factors.h"

namespace py = pybind11;

namespace {

bool supported_hadamard_block(int64_t block) {
  pvq::HadamardSplit split;
  return pvq::split_hadamard_block(block, &split);
}

py::array_t<int8_t> hadamard_matrix(int64_t block) {
  if (!supported_hadamard_block(block))
    throw py::value_error("there is no Hadamard matrix of order " + std::to_string(block));
  const std::vector<int8_t> entries = pvq::hadamard_matrix(static_cast<int>(block));
  py::array_t<int8_t> matrix({block, block});
  std::copy(entries.begin(), entries.end(), matrix.mutable_data());
  return matrix;
}

}  // namespace

void bind_hadamard(py::module_& m) {
  m.def("supported_hadamard_block", &supported_hadamard_block, py::arg("block"));
  m.def("default_hadamard_block", &pvq::default_hadamard_block, py::arg("cols"));
  m.def("hadamard_matrix", &hadamard_matrix, py::arg("block"));
}
