// Division of sizes, in every kernel's own namespace for the reason that vec.h gives.
#pragma once

#include <cstdint>

namespace vmf {
namespace VMF_ISA {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }  // of a >= 0
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
