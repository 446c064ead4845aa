// What csrc/cpu/few_query_attention.cpp exports once per instruction set.
#pragma once

#include "vmf/few_query_attention.h"

namespace vmf {

struct FewQueryAttentionKernels {
  decltype(&few_query_attention_items) items;
  decltype(&few_query_attention_scratch) scratch;
  decltype(&few_query_attention) forward;
  decltype(&few_query_attention_finish) finish;
  decltype(&few_query_attention_backward_scratch) backward_scratch;
  decltype(&few_query_attention_backward) backward;
  decltype(&few_query_attention_backward_finish) backward_finish;
};

namespace baseline {
extern const FewQueryAttentionKernels few_query_attention_kernels;
}
namespace avx2 {
extern const FewQueryAttentionKernels few_query_attention_kernels;
}
namespace avx512 {
extern const FewQueryAttentionKernels few_query_attention_kernels;
}

}  // namespace vmf
