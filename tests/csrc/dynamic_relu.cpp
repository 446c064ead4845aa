#include "vmf/dynamic_relu.h"

#include <algorithm>

#include "check.h"

namespace vmf::test {
namespace {

void run(Random& random) {
  DynamicReluShape s{};
  s.batch = random.pick<int64_t>({0, 1, 2, 3});
  s.channels = random.pick<int64_t>({1, 2, 7, 8, 16, 17, 33, 64, 100});
  s.positions = random.pick<int64_t>({0, 1, 2, 7, 16, 31, 129, 600});
  s.channels_last = random.flip();
  s.dtype = random.pick({DType::f64, DType::f32, DType::bf16, DType::f16});
  const int64_t count = s.batch * s.channels * s.positions, slopes = s.batch * s.channels;
  const Tensor x = Tensor::random(count, s.dtype, random),
               g = Tensor::random(count, s.dtype, random);
  const Tensor a1 = Tensor::random(slopes, s.dtype, random, 2);
  const Tensor a2 = Tensor::random(slopes, s.dtype, random, 2);
  Tensor y(count, s.dtype), gx(count, s.dtype), ga1(slopes, s.dtype), ga2(slopes, s.dtype);

  std::vector<Expected> output(count), grad_x(count), grad_a1(slopes), grad_a2(slopes);
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t slope = b * s.channels + c;
      for (int64_t p = 0; p < s.positions; ++p) {
        const int64_t i =
            s.channels_last ? (b * s.positions + p) * s.channels + c : slope * s.positions + p;
        const double first = a1[slope] * x[i], second = a2[slope] * x[i];
        output[i].add(std::max(first, second));
        // Products near a tie may round to one: either branch is right there.
        const double share = first > second ? 1 : first < second ? 0 : 0.5;
        grad_x[i].add(g[i] * (share * a1[slope] + (1 - share) * a2[slope]));
        grad_a1[slope].add(share * g[i] * x[i]);
        grad_a2[slope].add((1 - share) * g[i] * x[i]);
      }
    }
  }

  in_pieces(dynamic_relu_items(s), random, [&](int64_t begin, int64_t end) {
    dynamic_relu(s, x.data(), a1.data(), a2.data(), y.data(), begin, end);
  });
  check("dynamic_relu", y, output, s.dtype, 2);

  Block scratch(dynamic_relu_backward_scratch(s));
  in_pieces(dynamic_relu_items(s), random, [&](int64_t begin, int64_t end) {
    dynamic_relu_backward(s, g.data(), x.data(), a1.data(), a2.data(), gx.data(),
                          scratch.memory.get(), begin, end);
  });
  dynamic_relu_backward_finish(s, scratch.memory.get(), ga1.data(), ga2.data());
  check("dynamic_relu: grad_features", gx, grad_x, s.dtype, 4);
  check("dynamic_relu: grad_a1", ga1, grad_a1, s.dtype, 140);
  check("dynamic_relu: grad_a2", ga2, grad_a2, s.dtype, 140);
}

const Test test("dynamic_relu", run);

}  // namespace
}  // namespace vmf::test
