// Few tokens read all positions, softmax(q x^T scale) x per head, on raw pointers. No torch.
//
// Each function with a range works on the items [begin, end) of [0, ..._items(shape)); any split of
// that range, in any order and on any threads, gives the same bits. The items leave partial results
// in `scratch` (of ..._scratch bytes, which need not be initialised); ..._finish combines those in
// a fixed order. `query` and its like are dense (batch, tokens, channels).
#pragma once

#include "vmf/attention.h"

namespace vmf {

int64_t few_query_attention_items(const AttentionShape& shape);
int64_t few_query_attention_scratch(const AttentionShape& shape);
void few_query_attention(const AttentionShape& shape, const void* query, const void* features,
                         void* scratch, int64_t begin, int64_t end);

// `lse` is the log-sum-exp of each row of scores, (batch, heads, tokens) in the arithmetic dtype;
// `exact` is the output before it is rounded to 16 bits, or null if nobody wants it.
void few_query_attention_finish(const AttentionShape& shape, const void* scratch, void* output,
                                void* lse, void* exact);

// `output` is in the arithmetic dtype: for 16-bit features, the forward pass's `exact`.
int64_t few_query_attention_backward_scratch(const AttentionShape& shape);
void few_query_attention_backward(const AttentionShape& shape, const void* grad_output,
                                  const void* query, const void* features, const void* output,
                                  const void* lse, void* grad_features, void* scratch,
                                  int64_t begin, int64_t end);
void few_query_attention_backward_finish(const AttentionShape& shape, const void* scratch,
                                         void* grad_query);

}  // namespace vmf
