#include "vmf/few_query_attention.h"

#include "attention.h"

namespace vmf::test {
namespace {

// Rounded scores of a few hundred change probabilities by some hundred roundings.
constexpr double kSlack = 300;

void run(Random& random) {
  const AttentionShape s = random_attention(random);
  const int64_t tokens = s.batch * s.tokens * s.channels, d = s.channels / s.heads;
  const int64_t features = s.batch * s.positions * s.channels;
  const DType wide = arithmetic(s.dtype);
  const Tensor q = Tensor::random(tokens, s.dtype, random);
  const Tensor x = Tensor::random(features, s.dtype, random);
  const Tensor g = Tensor::random(tokens, s.dtype, random);
  Tensor y(tokens, s.dtype), exact(tokens, wide), lse(s.batch * s.heads * s.tokens, wide);
  Tensor gq(tokens, s.dtype), gx(features, s.dtype);

  std::vector<Expected> output(tokens), sums(lse.count()), grad_q(tokens), grad_x(features);
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t head = 0; head < s.heads; ++head) {
      const Rows qs = token_rows(s, q, b, head), gs = token_rows(s, g, b, head);
      const Rows xs = feature_rows(s, x, b, head);
      Rows p = products(qs, xs, s.scale);
      const std::vector<double> row_lse = softmax(p);
      const Rows grad_scores = score_gradients(p, products(gs, xs, 1), s.scale);
      for (int64_t m = 0; m < s.tokens; ++m) {
        Expected& sum = sums[(b * s.heads + head) * s.tokens + m];
        sum.add(row_lse[m]);
        // A score is made of d products, and the logarithm of the sum is added to it.
        sum.magnitude += s.scale * static_cast<double>(d) + std::log(s.positions);
        for (int64_t c = 0; c < d; ++c) {
          const int64_t at = token_at(s, b, m, head * d + c);
          for (int64_t i = 0; i < s.positions; ++i) {
            output[at].add(p[m][i] * xs[i][c]);
            grad_q[at].add(grad_scores[m][i] * xs[i][c]);
            // The row sum of p grad_p is taken away from each: rounding goes with its parts.
            grad_q[at].magnitude +=
                std::fabs(p[m][i] * xs[i][c] * s.scale) * static_cast<double>(d);
            Expected& e = grad_x[feature_at(s, b, i, head * d + c)];
            e.add(p[m][i] * gs[m][c]);
            e.add(grad_scores[m][i] * qs[m][c]);
            e.magnitude += std::fabs(p[m][i] * qs[m][c] * s.scale) * static_cast<double>(d);
          }
        }
      }
    }
  }

  Block scratch(few_query_attention_scratch(s));
  in_pieces(few_query_attention_items(s), random, [&](int64_t begin, int64_t end) {
    few_query_attention(s, q.data(), x.data(), scratch.memory.get(), begin, end);
  });
  few_query_attention_finish(s, scratch.memory.get(), y.data(), lse.data(), exact.data());
  check("few_query_attention", y, output, s.dtype, kSlack);
  check("few_query_attention: exact", exact, output, wide, kSlack);
  check("few_query_attention: lse", lse, sums, wide, kSlack);
  few_query_attention_finish(s, scratch.memory.get(), y.data(), lse.data(), nullptr);

  Block sums_of_gradients(few_query_attention_backward_scratch(s));
  in_pieces(few_query_attention_items(s), random, [&](int64_t begin, int64_t end) {
    few_query_attention_backward(s, g.data(), q.data(), x.data(), exact.data(), lse.data(),
                                 gx.data(), sums_of_gradients.memory.get(), begin, end);
  });
  few_query_attention_backward_finish(s, sums_of_gradients.memory.get(), gq.data());
  check("few_query_attention: grad_query", gq, grad_q, s.dtype, kSlack);
  check("few_query_attention: grad_features", gx, grad_x, s.dtype, kSlack);
}

const Test test("few_query_attention", run);

}  // namespace
}  // namespace vmf::test
