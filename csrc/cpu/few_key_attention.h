// What csrc/cpu/few_key_attention.cpp exports once per instruction set.
#pragma once

#include "vmf/few_key_attention.h"

namespace vmf {

struct FewKeyAttentionKernels {
  decltype(&few_key_attention_items) items;
  decltype(&few_key_attention) forward;
  decltype(&few_key_attention_backward_scratch) backward_scratch;
  decltype(&few_key_attention_backward) backward;
  decltype(&few_key_attention_backward_finish) backward_finish;
};

namespace baseline {
extern const FewKeyAttentionKernels few_key_attention_kernels;
}
namespace avx2 {
extern const FewKeyAttentionKernels few_key_attention_kernels;
}
namespace avx512 {
extern const FewKeyAttentionKernels few_key_attention_kernels;
}

}  // namespace vmf
