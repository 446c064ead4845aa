#include "vmf/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstdlib>
#include <iterator>
#include <stdexcept>

namespace vmf {
namespace {

const char* const kBuilt[] = {
#if defined(__x86_64__)
    "baseline",
    "avx2",
    "avx512",
#else
    "baseline",
#endif
};
constexpr int kCount = static_cast<int>(std::size(kBuilt));

#if defined(__x86_64__)
constexpr unsigned kZen5Family = 26;

// 0 for other makers' CPUs.
unsigned amd_family() {
  unsigned a, b, c, d;
  if (!__builtin_cpu_is("amd") || !__get_cpuid(1, &a, &b, &c, &d)) return 0;
  return (a >> 8 & 15) + (a >> 20 & 255);
}

// Bytes of all last-level caches of an AMD CPU together; 0 if it does not tell.
int64_t last_level_caches() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(0x8000001d, 3, &a, &b, &c, &d) || (a >> 5 & 7) != 3) return 0;
  const int64_t ways = (b >> 22) + 1, partitions = (b >> 12 & 1023) + 1, line = (b & 4095) + 1;
  const int64_t cpus = sysconf(_SC_NPROCESSORS_ONLN), sharing = (a >> 14 & 4095) + 1;
  const int64_t caches = (cpus + sharing - 1) / sharing;
  return ways * partitions * line * (static_cast<int64_t>(c) + 1) * (caches > 1 ? caches : 1);
}
#endif

// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
bool cpu_runs(int isa) {
#if defined(__x86_64__)
  switch (isa) {
    case 1:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case 2:
      return cpu_runs(1) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
  }
#endif
  return isa == 0;
}

int find_supported(const std::string& name, const char* who) {
  std::string choices;
  for (int isa = 0; isa < kCount; ++isa) {
    if (!cpu_runs(isa)) continue;
    if (name == kBuilt[isa]) return isa;
    choices += std::string(choices.empty() ? "" : ", ") + kBuilt[isa];
  }
  throw std::invalid_argument(std::string(who) + ": the instruction set must be one of " + choices +
                              " (got \"" + name + "\")");
}

std::atomic<int> chosen{-1};  // -1: nobody has asked yet

int64_t measured_streaming_pays_from() {
#if defined(__x86_64__)
  const int64_t caches = amd_family() >= kZen5Family ? last_level_caches() : 0;
  if (caches > 0) return caches / 2 * 3;
#endif
  return INT64_MAX;
}

// Asked of the CPU at the first call, not when the library is loaded.
std::atomic<int64_t>& streaming_from() {
  static std::atomic<int64_t> bytes{measured_streaming_pays_from()};
  return bytes;
}

}  // namespace

std::vector<std::string> built_isas() { return {std::begin(kBuilt), std::end(kBuilt)}; }

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (int isa = 0; isa < kCount; ++isa) {
    if (cpu_runs(isa)) names.push_back(kBuilt[isa]);
  }
  return names;
}

int current_isa_index() {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa >= 0) return isa;
  const char* wanted = std::getenv("VMF_CPU_ISA");
  if (wanted != nullptr && *wanted != '\0') {
    isa = find_supported(wanted, "VMF_CPU_ISA");
  } else {
    for (isa = kCount - 1; !cpu_runs(isa);) --isa;
  }
  int unset = -1;  // an answer that somebody gave meanwhile stays
  return chosen.compare_exchange_strong(unset, isa) ? isa : unset;
}

std::string current_isa() { return kBuilt[current_isa_index()]; }

void set_isa(const std::string& name) { chosen = find_supported(name, "set_isa"); }

int64_t prefetch_pays_from() {
#if defined(__x86_64__)
  constexpr int64_t kMiB = 1 << 20;
  static const int64_t bytes = __builtin_cpu_is("intel")     ? 32 * kMiB
                               : amd_family() >= kZen5Family ? 16 * kMiB
                                                             : 0;
  return bytes;
#else
  return 0;
#endif
}

int64_t streaming_pays_from() { return streaming_from().load(std::memory_order_relaxed); }

int64_t set_streaming_pays_from(int64_t bytes) { return streaming_from().exchange(bytes); }

}  // namespace vmf
