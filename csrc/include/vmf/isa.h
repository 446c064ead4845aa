// Which instruction set the CPU kernels run with. Every file of csrc/cpu is compiled once per entry
// of built_isas(); the best one that this CPU has is chosen at the first call.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vmf {

// Built into this library, slowest first: "baseline" and on x86-64 "avx2", "avx512".
std::vector<std::string> built_isas();

// Of those, what this CPU can run.
std::vector<std::string> supported_isas();

// The one in use: VMF_CPU_ISA if it is set, else the last of supported_isas().
// Throws std::invalid_argument where VMF_CPU_ISA names one that is not supported.
std::string current_isa();

// Uses another one from now on. Throws std::invalid_argument unless it is supported.
void set_isa(const std::string& name);

// The position of current_isa() in built_isas(): each op keeps its kernels in a table of that
// order.
int current_isa_index();

// The bytes that a call reads and writes from which on asking for memory ahead of its use pays. On
// CPUs that find by themselves what comes next it only costs while the data is in cache. Measured
// on AMD's Zen 4 (0: it always pays) and Zen 5; on Intel's for the convolution's forward.
int64_t prefetch_pays_from();

// The bytes that a call reads and writes from which on stores around the caches pay, even if what
// was written is read next: half as many again as the last-level caches hold. Measured on AMD's
// Zen 5; other CPUs do without (INT64_MAX).
int64_t streaming_pays_from();

// Sets that, for tests and measurements, and returns what it was.
int64_t set_streaming_pays_from(int64_t bytes);

}  // namespace vmf
