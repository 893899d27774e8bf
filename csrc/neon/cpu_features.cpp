// SPDX-License-Identifier: Apache-2.0
#include "neon/cpu_features.hpp"

#include <charconv>
#include <fstream>
#include <iterator>
#include <utility>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#include <sys/prctl.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

namespace vllm_axion {
namespace {

constexpr bool bit(std::uint64_t word, int position) { return ((word >> position) & 1u) != 0; }

struct KnownCore {
  std::uint32_t implementer;
  std::uint32_t part;
  const char* name;
};

// Server and development-board cores, from the vendors' technical reference manuals (MIDR_EL1).
constexpr KnownCore kKnownCores[] = {
    {0x41, 0xd03, "Cortex-A53"},  {0x41, 0xd08, "Cortex-A72"},  {0x41, 0xd0b, "Cortex-A76"},
    {0x41, 0xd0c, "Neoverse N1"}, {0x41, 0xd40, "Neoverse V1"}, {0x41, 0xd49, "Neoverse N2"},
    {0x41, 0xd4a, "Neoverse E1"}, {0x41, 0xd4f, "Neoverse V2"}, {0x41, 0xd83, "Neoverse V3AE"},
    {0x41, 0xd84, "Neoverse V3"}, {0x41, 0xd8e, "Neoverse N3"}, {0x46, 0x001, "A64FX"},
    {0x48, 0xd01, "Kunpeng 920"}, {0x6d, 0xd49, "Neoverse N2"},  // Azure Cobalt 100
    {0xc0, 0xac3, "AmpereOne"},   {0xc0, 0xac4, "AmpereOne A"},
};

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

std::optional<std::uint64_t> parse_hex(std::string_view text) {
  text = trimmed(text);
  if (!text.starts_with("0x") && !text.starts_with("0X")) return std::nullopt;
  std::uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data() + 2, end, value, 16);
  if (result.ec != std::errc{} || result.ptr != end) return std::nullopt;
  return value;
}

[[maybe_unused]] std::string read_text(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

#if defined(__aarch64__) && defined(__linux__)

#ifndef PR_SVE_GET_VL
#define PR_SVE_GET_VL 51
#endif

CpuFeatures detect_here() {
  CpuFeatures found = decode_arm_hwcaps(getauxval(AT_HWCAP), getauxval(AT_HWCAP2));
  if (found.sve) {
    const int length = prctl(PR_SVE_GET_VL);
    if (length >= 0) found.sve_bits = (length & 0xffff) * 8;
  }
  // Not the MRS instruction: older kernels and some containers trap it, and the files say the same.
  std::string text = read_text("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1");
  while (!text.empty() && text.back() == '\n') text.pop_back();
  auto midr = parse_hex(text);
  if (!midr) midr = midr_from_cpuinfo(read_text("/proc/cpuinfo"));
  if (midr) found.core = core_name(*midr);
  return found;
}

#elif defined(__x86_64__)

// Which register files the operating system saves: without its consent a feature bit of the CPU is of no use.
std::uint64_t read_xcr0() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

CpuFeatures detect_here() {
  CpuFeatures found;
  found.machine = "x86_64";
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || !bit(ecx, 27)) return found;  // 27: OSXSAVE
  const std::uint64_t xcr0 = read_xcr0();
  const bool ymm = (xcr0 & 0x6) == 0x6;
  const bool zmm = ymm && (xcr0 & 0xe0) == 0xe0;
  const bool tiles = (xcr0 & 0x60000) == 0x60000;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return found;
  const unsigned last_subleaf = eax;
  found.avx2 = ymm && bit(ebx, 5);
  found.avx512f = zmm && bit(ebx, 16);
  found.amx_bf16 = tiles && bit(edx, 24) && bit(edx, 22);  // 24: AMX-TILE
  if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0) {
    found.avx512_bf16 = found.avx512f && bit(eax, 5);
  }
  return found;
}

#else

CpuFeatures detect_here() { return {}; }

#endif

}  // namespace

CpuFeatures decode_arm_hwcaps(std::uint64_t hwcap, std::uint64_t hwcap2) {
  CpuFeatures found;
  found.machine = "aarch64";
  found.neon = bit(hwcap, 1);                    // HWCAP_ASIMD
  found.fp16 = bit(hwcap, 9) && bit(hwcap, 10);  // HWCAP_FPHP, HWCAP_ASIMDHP
  found.dotprod = bit(hwcap, 20);                // HWCAP_ASIMDDP
  found.sve = bit(hwcap, 22);                    // HWCAP_SVE
  found.sve2 = bit(hwcap2, 1);                   // HWCAP2_SVE2
  found.i8mm = bit(hwcap2, 13);                  // HWCAP2_I8MM
  found.bf16 = bit(hwcap2, 14);                  // HWCAP2_BF16
  return found;
}

std::optional<std::uint64_t> midr_from_cpuinfo(std::string_view text) {
  std::optional<std::uint64_t> implementer;
  std::optional<std::uint64_t> part;
  while (!text.empty() && !(implementer && part)) {
    const auto end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
    const auto colon = line.find(':');
    if (colon == std::string_view::npos) continue;
    const std::string_view key = trimmed(line.substr(0, colon));
    if (!implementer && key == "CPU implementer") implementer = parse_hex(line.substr(colon + 1));
    if (!part && key == "CPU part") part = parse_hex(line.substr(colon + 1));
  }
  if (!implementer || !part) return std::nullopt;
  return ((*implementer & 0xff) << 24) | ((*part & 0xfff) << 4);
}

std::string core_name(std::uint64_t midr) {
  const auto implementer = static_cast<std::uint32_t>((midr >> 24) & 0xff);
  const auto part = static_cast<std::uint32_t>((midr >> 4) & 0xfff);
  for (const KnownCore& core : kKnownCores) {
    if (core.implementer == implementer && core.part == part) return core.name;
  }
  return {};
}

CpuFeatures detect_cpu_features() { return detect_here(); }

std::vector<std::string> feature_names(const CpuFeatures& features) {
  const std::pair<bool, const char*> all[] = {
      {features.neon, "neon"},         {features.fp16, "fp16"},
      {features.dotprod, "dotprod"},   {features.bf16, "bf16"},
      {features.i8mm, "i8mm"},         {features.sve, "sve"},
      {features.sve2, "sve2"},         {features.avx2, "avx2"},
      {features.avx512f, "avx512f"},   {features.avx512_bf16, "avx512_bf16"},
      {features.amx_bf16, "amx_bf16"},
  };
  std::vector<std::string> names;
  for (const auto& [present, name] : all) {
    if (present) names.emplace_back(name);
  }
  return names;
}

}  // namespace vllm_axion
