// pvq._core: the tables of the words that the GPU's product reads exact indices from.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <vector>

#include "core/regions.h"

namespace py = pybind11;

namespace {

template <class T, class F>
py::array_t<int64_t> column(const std::vector<T>& items, F field) {
  py::array_t<int64_t> values(py::ssize_t(items.size()));
  std::transform(items.begin(), items.end(), values.mutable_data(), field);
  return values;
}

template <class T>
py::array_t<int64_t> array(const std::vector<T>& values) {
  py::array_t<int64_t> result(py::ssize_t(values.size()));
  std::copy(values.begin(), values.end(), result.mutable_data());
  return result;
}

py::dict regions(int dim, int pulses) {
  if (!pvq::Regions::supports(dim, pulses))
    throw py::value_error("there are regions for dim 8 and 16 and 1 to " +
                          std::to_string(pvq::kRegionPulses) + " pulses, not for dim " +
                          std::to_string(dim) + " and " + std::to_string(pulses) + " pulses");
  const pvq::Regions& r = pvq::Regions::get(dim, pulses);
  py::array_t<int64_t> leaves({py::ssize_t(r.regions.size()), py::ssize_t(dim / 4)});
  int64_t* next = leaves.mutable_data();
  for (const pvq::Region& region : r.regions) next = std::copy_n(region.pulses, dim / 4, next);
  py::dict tables;
  tables["bits"] = r.bits;
  tables["unit_bits"] = r.unit_bits;
  tables["cell_bits"] = r.cell_bits;
  tables["split"] = r.split;
  tables["pulses"] = leaves;
  tables["first"] = column(r.regions, [](const pvq::Region& x) { return x.first; });
  tables["cell"] = column(r.regions, [](const pvq::Region& x) { return x.cell; });
  tables["slot"] = column(r.regions, [](const pvq::Region& x) { return x.slot; });
  tables["cell_region"] = column(r.cells, [](const pvq::RegionCell& x) { return x.first_region; });
  tables["slot_bits"] = column(r.cells, [](const pvq::RegionCell& x) { return x.slot_bits; });
  tables["count"] = array(r.count);
  tables["share"] = array(r.share);
  tables["start"] = array(r.start);
  tables["points"] = array(r.points);
  return tables;
}

}  // namespace

void bind_regions(py::module_& m) {
  m.def("has_regions", &pvq::Regions::supports, py::arg("dim"), py::arg("pulses"),
        "Whether pyramids of this size have the words of csrc/core/regions.h.");
  m.def("regions", &regions, py::arg("dim"), py::arg("pulses"),
        "The tables of csrc/core/regions.h as int64 arrays; `points` holds four int8 a word.");
}
