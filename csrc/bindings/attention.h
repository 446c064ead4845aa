// The checks that both attentions share.
#pragma once

#include <cmath>
#include <initializer_list>
#include <optional>

#include "bindings/direct.h"
#include "vmf/attention.h"

namespace vmf::bindings {

// `tokens` are the query, or the key and the value: (B, M, C), of the features' dtype.
inline AttentionShape attention_shape(const Tensor& features,
                                      std::initializer_list<const Tensor*> tokens,
                                      int64_t num_heads, double scale) {
  STD_TORCH_CHECK(features.dim() >= 3, "attention: features must be (B, C, *spatial)");
  const Tensor& first = **tokens.begin();
  for (const Tensor* tensor : tokens) {
    STD_TORCH_CHECK(tensor->dim() == 3 && tensor->size(0) == features.size(0) &&
                        tensor->size(1) == first.size(1) && tensor->size(2) == features.size(1),
                    "attention: tokens must be (B, M, C), of one M and the features' B and C");
    STD_TORCH_CHECK(tensor->scalar_type() == features.scalar_type(),
                    "attention: tensors must share one dtype");
  }
  int64_t positions = 1;
  for (int64_t i = 2; i < features.dim(); ++i) positions *= features.size(i);
  STD_TORCH_CHECK(first.size(1) > 0 && positions > 0,
                  "attention: there must be at least one token and one position");
  STD_TORCH_CHECK(num_heads > 0 && features.size(1) > 0 && features.size(1) % num_heads == 0,
                  "attention: num_heads must divide the channels");
  return {features.size(0),           first.size(1), features.size(1),  num_heads, positions,
          is_channels_last(features), scale,         dtype_of(features)};
}

// The public functions' scale, or what they take for none.
inline double scale_or_default(std::optional<double> scale, const Tensor& features,
                               int64_t num_heads) {
  if (scale) return *scale;
  return std::pow(static_cast<double>(features.size(1)) / static_cast<double>(num_heads), -0.5);
}

// Multiply-adds of one product between all tokens and all positions.
inline double multiply_adds(const AttentionShape& shape) {
  return static_cast<double>(shape.batch) * shape.tokens * shape.channels * shape.positions;
}

}  // namespace vmf::bindings
