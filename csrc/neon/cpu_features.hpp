// SPDX-License-Identifier: Apache-2.0
// What the CPU and the operating system allow, asked at run time so that one build serves every machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vllm_axion {

struct CpuFeatures {
  std::string machine;  // "aarch64", "x86_64", or "" where nothing is known
  std::string core;     // "Neoverse V2"; "" where the core is not in the table (always so on x86-64)

  bool neon = false;
  bool fp16 = false;  // half-precision arithmetic, scalar and vector
  bool dotprod = false;
  bool bf16 = false;
  bool i8mm = false;
  bool sve = false;
  bool sve2 = false;
  int sve_bits = 0;  // vector length of this thread; 0 without SVE

  bool avx2 = false;
  bool avx512f = false;
  bool avx512_bf16 = false;
  bool amx_bf16 = false;
};

// Asks this machine. Never fails: what cannot be found out stays false or empty.
CpuFeatures detect_cpu_features();

// Names of the features that are set, in the order above: {"neon", "fp16", ...}.
std::vector<std::string> feature_names(const CpuFeatures& features);

// The parts of the ARM detection that need no ARM machine, so that every machine can test them.
// `hwcap` and `hwcap2` are AT_HWCAP and AT_HWCAP2 of Linux (arch/arm64/include/uapi/asm/hwcap.h).
CpuFeatures decode_arm_hwcaps(std::uint64_t hwcap, std::uint64_t hwcap2);

// First core described in the text of /proc/cpuinfo, as a MIDR_EL1 value with implementer and part filled in.
std::optional<std::uint64_t> midr_from_cpuinfo(std::string_view text);

// Name for a MIDR_EL1 value (implementer in bits 31:24, part number in bits 15:4); "" when not in the table.
std::string core_name(std::uint64_t midr);

}  // namespace vllm_axion
