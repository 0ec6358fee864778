// The operators' schemas and the module's entry point: importing pvq._C registers torch.ops.pvq.*.
// The implementations stand in the file of their own name in this folder.
//
// `code` below is (Tensor index, Tensor gain, Tensor row_scale, int dim, int pulses, int gain_bits,
// str gain_law): the stored form of a matrix and the numbers that say how to read it.
#include <Python.h>

#include "ops/checks.h"

STABLE_TORCH_LIBRARY(pvq, m) {
  m.def("nearest(Tensor x, int pulses, int quality=1) -> Tensor");
  m.def("encode(Tensor y, int pulses) -> Tensor");
  m.def("decode(Tensor index, int dim, int pulses, int groups) -> Tensor");
  m.def("check_codes(Tensor index, int dim, int pulses, int groups) -> ()");
  m.def(
      "quantize(Tensor w, int dim, int pulses, int gain_bits, str gain_law, int quality=1)"
      " -> (Tensor index, Tensor gain, Tensor row_scale)");
  m.def(
      "dequantize(Tensor index, Tensor gain, Tensor row_scale, int dim, int pulses, int gain_bits,"
      " str gain_law, int cols, ScalarType dtype, int block=0, int seed=0) -> Tensor");
  m.def("hadamard(Tensor x, int block, int? seed=None, bool inverse=False) -> Tensor");
  m.def("hadamard_(Tensor(a!) x, int block, int? seed=None, bool inverse=False) -> ()");
  m.def(
      "matmul(Tensor x, Tensor index, Tensor gain, Tensor row_scale, int dim, int pulses,"
      " int gain_bits, str gain_law, int block=0, int seed=0) -> Tensor");
  m.def(
      "matmul_transposed(Tensor g, Tensor index, Tensor gain, Tensor row_scale, int dim,"
      " int pulses, int gain_bits, str gain_law, int cols, int block=0, int seed=0) -> Tensor");
  m.def(
      "to_planes(Tensor index, Tensor gain, Tensor row_scale, int dim, int pulses, int gain_bits,"
      " str gain_law, int cols) -> (Tensor planes, Tensor scale, Tensor outlier_start,"
      " Tensor outlier_place, Tensor outlier_value)");
  m.def(
      "matmul_planes(Tensor x, Tensor planes, Tensor scale, Tensor outlier_start,"
      " Tensor outlier_place, Tensor outlier_value, int rows, int dim, int block=0, int seed=0)"
      " -> Tensor");
  m.def(
      "matmul_planes_transposed(Tensor g, Tensor planes, Tensor scale, Tensor outlier_start,"
      " Tensor outlier_place, Tensor outlier_value, int rows, int dim, int block=0, int seed=0)"
      " -> Tensor");
  m.def("activation_points(Tensor x, int dim, int pulses) -> (Tensor point, Tensor amplitude)");
  m.def(
      "matmul_planes_points(Tensor point, Tensor amplitude, Tensor planes, Tensor scale,"
      " Tensor outlier_start, Tensor outlier_place, Tensor outlier_value, int rows, int dim,"
      " ScalarType dtype) -> Tensor");
  m.def(
      "plane_matmul(Tensor x, Tensor fragments, Tensor row_scale, int block=0, int seed=0)"
      " -> Tensor");
  m.def("plane_expand(Tensor fragments, Tensor row_scale, int cols, ScalarType dtype) -> Tensor");
  m.def(
      "index_matmul(Tensor x, Tensor fragments, Tensor row_scale, int dim, int pulses,"
      " int gain_bits, str gain_law, int block=0, int seed=0) -> Tensor");
  m.def(
      "index_expand(Tensor fragments, Tensor row_scale, int dim, int pulses, int gain_bits,"
      " str gain_law, int cols, ScalarType dtype) -> Tensor");
  m.def("table_quantize(Tensor w, int bits) -> (Tensor code, Tensor row_scale)");
  m.def(
      "table_dequantize(Tensor code, Tensor row_scale, int bits, int cols, ScalarType dtype,"
      " int block=0, int seed=0) -> Tensor");
  m.def(
      "table_matmul(Tensor x, Tensor code, Tensor row_scale, int bits, int block=0, int seed=0)"
      " -> Tensor");
  m.def(
      "table_matmul_transposed(Tensor g, Tensor code, Tensor row_scale, int bits, int cols,"
      " int block=0, int seed=0) -> Tensor");
  m.def("table_fragments(Tensor code, Tensor table, int bits) -> Tensor");
  m.def("table_codes(Tensor fragments, int rows, int cols, int bits) -> Tensor");
  m.def(
      "table_rows(Tensor fragments, Tensor row_scale, Tensor ids, int bits, int cols,"
      " ScalarType dtype, int block=0, int seed=0) -> Tensor");
  m.def("table_expand(Tensor fragments, Tensor row_scale, int bits, ScalarType dtype) -> Tensor");
  m.def(
      "table_matmul_fragments(Tensor x, Tensor fragments, Tensor row_scale, int bits, int block=0,"
      " int seed=0, bool residual=False) -> Tensor");
  m.def(
      "table_matmul_points(Tensor point, Tensor amplitude, Tensor fragments, Tensor row_scale,"
      " int bits, int largest, ScalarType dtype) -> Tensor");
  m.def(
      "overlap_matmul_points(Tensor point, Tensor amplitude, Tensor fragments, Tensor row_scale,"
      " int pair_bits, int largest, ScalarType dtype) -> Tensor");
  m.def(
      "overlap_search(Tensor x, Tensor table, int step_bits, int lag, Tensor? weight=None,"
      " Tensor? start=None, Tensor? end=None, bool ring=False, int beam=0, float spread=0)"
      " -> (Tensor symbol, Tensor start, Tensor cost)");
  m.def(
      "overlap_dequantize(Tensor code, Tensor row_scale, Tensor table, int step_bits, int lag,"
      " int spread, int cols, ScalarType dtype, int block=0, int seed=0) -> Tensor");
  m.def(
      "overlap_matmul(Tensor x, Tensor code, Tensor row_scale, Tensor table, int step_bits,"
      " int lag, int spread, int block=0, int seed=0) -> Tensor");
  m.def(
      "overlap_matmul_transposed(Tensor g, Tensor code, Tensor row_scale, Tensor table,"
      " int step_bits, int lag, int spread, int cols, int block=0, int seed=0) -> Tensor");
  m.def(
      "overlap_expand(Tensor fragments, Tensor row_scale, int pair_bits, ScalarType dtype)"
      " -> Tensor");
  m.def(
      "overlap_matmul_fragments(Tensor x, Tensor fragments, Tensor row_scale, int pair_bits,"
      " int block=0, int seed=0, bool residual=False) -> Tensor");
}

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
