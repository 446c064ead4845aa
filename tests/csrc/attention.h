// What the tests of both attentions share: a random shape, and softmax in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"
#include "vmf/attention.h"

namespace vmf::test {

inline AttentionShape random_attention(Random& random) {
  AttentionShape s{};
  s.batch = random.pick<int64_t>({0, 1, 1, 2, 3});
  s.tokens = random.pick<int64_t>({1, 2, 3, 4, 6, 6, 6, 7, 16, 65});
  s.heads = random.pick<int64_t>({1, 2, 2, 3});
  s.channels = s.heads * random.pick<int64_t>({1, 3, 5, 6, 8, 12, 16, 17, 20, 44, 64});
  s.positions = random.pick<int64_t>({1, 2, 7, 16, 31, 49, 128, 392, 1500});
  s.channels_last = random.flip();
  s.scale = random.pick({1.0, 0.25, 3.0});
  s.dtype = random.pick({DType::f64, DType::f32, DType::f32, DType::bf16, DType::f16});
  return s;
}

// The arithmetic dtype: of sums and of what is kept for the backward pass.
inline DType arithmetic(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

// Where channel c of position p lies in the features of sample b.
inline int64_t feature_at(const AttentionShape& s, int64_t b, int64_t p, int64_t c) {
  return s.channels_last ? (b * s.positions + p) * s.channels + c
                         : (b * s.channels + c) * s.positions + p;
}

// One head of one sample: its tensors as plain rows of doubles.
using Rows = std::vector<std::vector<double>>;

inline Rows feature_rows(const AttentionShape& s, const Tensor& x, int64_t b, int64_t head) {
  const int64_t d = s.channels / s.heads;
  Rows rows(s.positions, std::vector<double>(d));
  for (int64_t p = 0; p < s.positions; ++p) {
    for (int64_t c = 0; c < d; ++c) rows[p][c] = x[feature_at(s, b, p, head * d + c)];
  }
  return rows;
}

inline int64_t token_at(const AttentionShape& s, int64_t b, int64_t m, int64_t c) {
  return (b * s.tokens + m) * s.channels + c;
}

inline Rows token_rows(const AttentionShape& s, const Tensor& q, int64_t b, int64_t head) {
  const int64_t d = s.channels / s.heads;
  Rows rows(s.tokens, std::vector<double>(d));
  for (int64_t m = 0; m < s.tokens; ++m) {
    for (int64_t c = 0; c < d; ++c) rows[m][c] = q[token_at(s, b, m, head * d + c)];
  }
  return rows;
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// a bᵀ scale
inline Rows products(const Rows& a, const Rows& b, double scale) {
  Rows result;
  for (const auto& row : a) {
    result.emplace_back();
    for (const auto& other : b) result.back().push_back(scale * dot(row, other));
  }
  return result;
}

// Softmax of each row in place; returns each row's log-sum-exp.
inline std::vector<double> softmax(Rows& scores) {
  std::vector<double> lse;
  for (auto& row : scores) {
    const double top = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (double score : row) sum += std::exp(score - top);
    lse.push_back(top + std::log(sum));
    for (double& score : row) score = std::exp(score - lse.back());
  }
  return lse;
}

// p (grad_p - sum(p grad_p)) scale, row by row
inline Rows score_gradients(const Rows& p, const Rows& grad_p, double scale) {
  Rows result = p;
  for (size_t i = 0; i < p.size(); ++i) {
    const double sum = dot(p[i], grad_p[i]);
    for (size_t j = 0; j < p[i].size(); ++j) result[i][j] *= (grad_p[i][j] - sum) * scale;
  }
  return result;
}

}  // namespace vmf::test
