// SPDX-License-Identifier: Apache-2.0
// vllm_axion._kernels: what Python may ask without torch. Signatures are repeated in vllm_axion/_kernels.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "neon/cpu_features.hpp"

namespace py = pybind11;
using namespace vllm_axion;

namespace {

py::tuple as_tuple(const CpuFeatures& found) {
  return py::make_tuple(found.machine, found.core, feature_names(found), found.sve_bits);
}

}  // namespace

PYBIND11_MODULE(_kernels, module) {
  module.doc() = "Compiled part of vllm_axion; use it through vllm_axion.kernels.";
  module.def(
      "cpu_features", [] { return as_tuple(detect_cpu_features()); },
      "(machine, core, feature names, SVE bits) of this machine.");
  module.def(
      "decode_arm_hwcaps",
      [](std::uint64_t hwcap, std::uint64_t hwcap2) {
        return feature_names(decode_arm_hwcaps(hwcap, hwcap2));
      },
      py::arg("hwcap"), py::arg("hwcap2"), "Feature names in Linux's AT_HWCAP and AT_HWCAP2 words.");
  module.def("midr_from_cpuinfo", &midr_from_cpuinfo, py::arg("text"),
             "MIDR_EL1 of the first core in the text of /proc/cpuinfo, or None.");
  module.def("core_name", &core_name, py::arg("midr"), "Name of the core with this MIDR_EL1, or ''.");
}
