// The element types that kernels read and write.
#pragma once

#include <cstdint>

namespace vmf {

enum class DType : int32_t { f64, f32, bf16, f16 };

}  // namespace vmf
