// All positions read few tokens, x + softmax(x k^T scale) v per head, on raw pointers. No torch.
//
// Each function with a range works on the items [begin, end) of [0, ..._items(shape)); any split of
// that range, in any order and on any threads, gives the same bits. `key` and `value` are dense
// (batch, tokens, channels).
#pragma once

#include "vmf/attention.h"

namespace vmf {

int64_t few_key_attention_items(const AttentionShape& shape);
void few_key_attention(const AttentionShape& shape, bool residual, const void* features,
                       const void* key, const void* value, void* output, int64_t begin,
                       int64_t end);

// The items write grad_features, and partial sums of the other gradients into `scratch` (of
// ..._scratch bytes, which need not be initialised); ..._finish adds those in a fixed order.
int64_t few_key_attention_backward_scratch(const AttentionShape& shape);
void few_key_attention_backward(const AttentionShape& shape, bool residual, const void* grad_output,
                                const void* features, const void* key, const void* value,
                                void* grad_features, void* scratch, int64_t begin, int64_t end);
void few_key_attention_backward_finish(const AttentionShape& shape, const void* scratch,
                                       void* grad_key, void* grad_value);

}  // namespace vmf
