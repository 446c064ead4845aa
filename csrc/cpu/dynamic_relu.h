// What csrc/cpu/dynamic_relu.cpp exports once per instruction set.
#pragma once

#include "vmf/dynamic_relu.h"

namespace vmf {

struct DynamicReluKernels {
  decltype(&dynamic_relu_items) items;
  decltype(&dynamic_relu) forward;
  decltype(&dynamic_relu_backward_scratch) scratch;
  decltype(&dynamic_relu_backward) backward;
  decltype(&dynamic_relu_backward_finish) finish;
};

namespace baseline {
extern const DynamicReluKernels dynamic_relu_kernels;
}
namespace avx2 {
extern const DynamicReluKernels dynamic_relu_kernels;
}
namespace avx512 {
extern const DynamicReluKernels dynamic_relu_kernels;
}

}  // namespace vmf
