#include "vmf/few_key_attention.h"

#include "attention.h"

namespace vmf::test {
namespace {

constexpr double kSlack = 300;  // as for few_query_attention

void run(Random& random) {
  const AttentionShape s = random_attention(random);
  const bool residual = random.flip();
  const int64_t tokens = s.batch * s.tokens * s.channels, d = s.channels / s.heads;
  const int64_t features = s.batch * s.positions * s.channels;
  const Tensor x = Tensor::random(features, s.dtype, random);
  const Tensor k = Tensor::random(tokens, s.dtype, random);
  const Tensor v = Tensor::random(tokens, s.dtype, random);
  const Tensor g = Tensor::random(features, s.dtype, random);
  Tensor y(features, s.dtype), gx(features, s.dtype), gk(tokens, s.dtype), gv(tokens, s.dtype);

  std::vector<Expected> output(features), grad_x(features), grad_k(tokens), grad_v(tokens);
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t head = 0; head < s.heads; ++head) {
      const Rows xs = feature_rows(s, x, b, head), gs = feature_rows(s, g, b, head);
      const Rows ks = token_rows(s, k, b, head), vs = token_rows(s, v, b, head);
      Rows p = products(xs, ks, s.scale);
      softmax(p);
      const Rows grad_scores = score_gradients(p, products(gs, vs, 1), s.scale);
      for (int64_t i = 0; i < s.positions; ++i) {
        for (int64_t c = 0; c < d; ++c) {
          const int64_t at = feature_at(s, b, i, head * d + c);
          if (residual) {
            output[at].add(xs[i][c]);
            grad_x[at].add(gs[i][c]);
          }
          for (int64_t m = 0; m < s.tokens; ++m) {
            const int64_t token = token_at(s, b, m, head * d + c);
            output[at].add(p[i][m] * vs[m][c]);
            grad_x[at].add(grad_scores[i][m] * ks[m][c]);
            grad_k[token].add(grad_scores[i][m] * xs[i][c]);
            grad_v[token].add(p[i][m] * gs[i][c]);
            // The row sum of p grad_p is taken away from each: rounding goes with its parts.
            const double parts = p[i][m] * s.scale * static_cast<double>(d);
            grad_x[at].magnitude += parts * std::fabs(ks[m][c]);
            grad_k[token].magnitude += parts * std::fabs(xs[i][c]);
          }
        }
      }
    }
  }

  in_pieces(few_key_attention_items(s), random, [&](int64_t begin, int64_t end) {
    few_key_attention(s, residual, x.data(), k.data(), v.data(), y.data(), begin, end);
  });
  check("few_key_attention", y, output, s.dtype, kSlack);

  Block scratch(few_key_attention_backward_scratch(s));
  in_pieces(few_key_attention_items(s), random, [&](int64_t begin, int64_t end) {
    few_key_attention_backward(s, residual, g.data(), x.data(), k.data(), v.data(), gx.data(),
                               scratch.memory.get(), begin, end);
  });
  few_key_attention_backward_finish(s, scratch.memory.get(), gk.data(), gv.data());
  check("few_key_attention: grad_features", gx, grad_x, s.dtype, kSlack);
  check("few_key_attention: grad_key", gk, grad_k, s.dtype, kSlack);
  check("few_key_attention: grad_value", gv, grad_v, s.dtype, kSlack);
}

const Test test("few_key_attention", run);

}  // namespace
}  // namespace vmf::test
