#include "depthwise_conv3d.h"

#include <array>

#include "check.h"

namespace vmf::test {
namespace {

using Shape = DepthwiseConv3dShape;
using Ints = std::array<int64_t, 3>;

bool random_shape(Random& random, Shape& s) {
  const Ints kernel = random.pick<Ints>({{3, 3, 3},
                                         {3, 3, 3},
                                         {1, 3, 3},
                                         {3, 1, 1},
                                         {5, 1, 1},
                                         {5, 3, 3},
                                         {1, 5, 5},
                                         {5, 5, 5},
                                         {7, 7, 7},
                                         {1, 1, 1},
                                         {2, 2, 2},
                                         {2, 4, 6},
                                         {1, 2, 9},
                                         {3, 3, 1}});
  const Ints stride = random.pick<Ints>(
      {{1, 1, 1}, {1, 1, 1}, {1, 2, 2}, {1, 2, 2}, {2, 2, 2}, {2, 1, 1}, {3, 3, 3}, {1, 1, 4}});
  const Ints dilation =
      random.pick<Ints>({{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {2, 2, 2}, {1, 1, 2}, {3, 1, 1}});
  s.batch = random.pick<int64_t>({0, 1, 1, 2, 3});
  s.channels = random.pick<int64_t>({1, 2, 3, 5, 8, 12, 16, 17, 24, 33, 54, 64, 130});
  s.multiplier = random.pick<int64_t>({1, 1, 1, 1, 2, 3, 4, 6, 9, 18});
  s.channels_last = random.flip();
  s.dtype = random.pick({DType::f64, DType::f32, DType::f32, DType::bf16, DType::f16});
  const Ints input = {random.pick<int64_t>({1, 2, 3, 4, 7}),
                      random.pick<int64_t>({1, 2, 3, 4, 5, 7, 9, 13}),
                      random.pick<int64_t>({1, 2, 3, 4, 5, 7, 8, 10, 13, 14, 16, 17, 20, 29, 33})};
  for (int i = 0; i < 3; ++i) {
    s.input[i] = input[i];
    s.kernel[i] = kernel[i];
    s.stride[i] = stride[i];
    s.dilation[i] = dilation[i];
    const bool usual = random.below(3) > 0;
    s.padding[i] = usual ? kernel[i] / 2 : random.below(kernel[i] + 2);
    const int64_t after = usual ? kernel[i] / 2 : random.below(kernel[i] + 1);
    const int64_t room = input[i] + s.padding[i] + after - dilation[i] * (kernel[i] - 1) - 1;
    if (room < 0) return false;
    s.output[i] = room / stride[i] + 1;
  }
  return true;
}

// Again with a residual and an activation.
void run_with_epilogue(const Shape& s, Random& random, const Tensor& x, const Tensor& w,
                       const void* bias, std::vector<Expected> expected) {
  const int64_t channels = s.channels * s.multiplier;
  const Tensor r = Tensor::random(s.batch * channels * volume(s.output), s.dtype, random, 4);
  const Tensor a1 = Tensor::random(s.batch * channels, s.dtype, random);
  const Tensor a2 = Tensor::random(s.batch * channels, s.dtype, random);
  const bool added = random.flip();
  DepthwiseConv3dEpilogue epilogue;
  epilogue.bias = bias;
  epilogue.residual = added ? r.data() : nullptr;
  epilogue.activation = random.pick({Activation::none, Activation::relu, Activation::silu,
                                     Activation::gelu, Activation::dynamic_relu});
  if (epilogue.activation == Activation::dynamic_relu) {
    epilogue.slopes[0] = a1.data();
    epilogue.slopes[1] = a2.data();
  }
  for (int64_t o = 0; o < r.count(); ++o) {
    const int64_t sample = o / (channels * volume(s.output));
    const int64_t c = s.channels_last ? o % channels : o / volume(s.output) % channels;
    if (added) expected[o].add(r[o]);
    double& v = expected[o].value;
    switch (epilogue.activation) {
      case Activation::relu:
        v = std::fmax(v, 0);
        break;
      case Activation::silu:
        v = v / (1 + std::exp(-v));
        break;
      case Activation::gelu:
        v = v * std::erfc(-v * std::sqrt(0.5)) / 2;
        break;
      case Activation::dynamic_relu:
        v = std::fmax(a1[sample * channels + c] * v, a2[sample * channels + c] * v);
        break;
      default:
        break;
    }
  }
  Tensor z(r.count(), s.dtype);
  in_pieces(depthwise_conv3d_items(s), random, [&](int64_t begin, int64_t end) {
    depthwise_conv3d(s, x.data(), w.data(), epilogue, z.data(), begin, end);
  });
  check("depthwise_conv3d: epilogue", z, expected, s.dtype, 60);
}

void run(Random& random) {
  Shape s{};
  if (!random_shape(random, s)) return;
  const int64_t channels = s.channels * s.multiplier, taps = volume(s.kernel);
  const int64_t inputs = s.batch * s.channels * volume(s.input);
  const int64_t outputs = s.batch * channels * volume(s.output);
  if (outputs * taps > 3'000'000) return;  // the loops here take their time
  const Tensor x = Tensor::random(inputs, s.dtype, random);
  const Tensor w = Tensor::random(channels * taps, s.dtype, random);
  const Tensor b = Tensor::random(channels, s.dtype, random);
  const Tensor g = Tensor::random(outputs, s.dtype, random);
  Tensor y(outputs, s.dtype), gx(inputs, s.dtype), gw(channels * taps, s.dtype),
      gb(channels, s.dtype);
  const bool biased = random.flip();

  std::vector<Expected> output(outputs), grad_x(inputs), grad_w(channels * taps), grad_b(channels);
  each_product(s, [&](int64_t i, int64_t k, int64_t o, int64_t) {
    output[o].add(x[i] * w[k]);
    grad_x[i].add(g[o] * w[k]);
    grad_w[k].add(g[o] * x[i]);
  });
  for (int64_t o = 0; o < outputs; ++o) {
    const int64_t c = s.channels_last ? o % channels : o / volume(s.output) % channels;
    if (biased) output[o].add(b[c]);
    grad_b[c].add(g[o]);
  }
  // A bias of the transposed convolution: the first values of the same one.
  for (int64_t i = 0; biased && i < inputs; ++i) {
    grad_x[i].add(b[s.channels_last ? i % s.channels : i / volume(s.input) % s.channels]);
  }

  DepthwiseConv3dEpilogue epilogue;
  epilogue.bias = biased ? b.data() : nullptr;
  in_pieces(depthwise_conv3d_items(s), random, [&](int64_t begin, int64_t end) {
    depthwise_conv3d(s, x.data(), w.data(), epilogue, y.data(), begin, end);
  });
  check("depthwise_conv3d", y, output, s.dtype, 40);
  run_with_epilogue(s, random, x, w, epilogue.bias, output);

  in_pieces(depthwise_conv_transpose3d_items(s), random, [&](int64_t begin, int64_t end) {
    depthwise_conv_transpose3d(s, g.data(), w.data(), epilogue.bias, gx.data(), begin, end);
  });
  check("depthwise_conv_transpose3d", gx, grad_x, s.dtype, 40);

  Block scratch(depthwise_conv3d_grad_weight_scratch(s));
  in_pieces(depthwise_conv3d_grad_weight_items(s), random, [&](int64_t begin, int64_t end) {
    depthwise_conv3d_grad_weight(s, g.data(), x.data(), scratch.memory.get(), begin, end);
  });
  depthwise_conv3d_grad_weight_finish(s, scratch.memory.get(), gw.data(), gb.data());
  check("depthwise_conv3d: grad_weight", gw, grad_w, s.dtype, 140);
  check("depthwise_conv3d: grad_bias", gb, grad_b, s.dtype, 140);
  depthwise_conv3d_grad_weight_finish(s, scratch.memory.get(), nullptr, gb.data());
  depthwise_conv3d_grad_weight_finish(s, scratch.memory.get(), gw.data(), nullptr);
  check("depthwise_conv3d: grad_weight again", gw, grad_w, s.dtype, 140);
}

const Test test("depthwise_conv3d", run);

}  // namespace
}  // namespace vmf::test
