// The CUDA kernels of depthwise_conv3d, run by fibers on the CPU.
#include <array>

#include "check.h"
#include "cuda/depthwise_conv3d.cu"
#include "cuda/depthwise_conv3d_channels_last.cu"
#include "depthwise_conv3d.h"

namespace vmf::test {
namespace {

using Shape = DepthwiseConv3dShape;
using Ints = std::array<int64_t, 3>;

bool random_shape(Random& random, Shape& s) {
  Ints kernel = random.pick<Ints>(
      {{3, 3, 3}, {3, 3, 3}, {1, 3, 3}, {5, 3, 3}, {1, 5, 5}, {3, 5, 5}, {5, 5, 5}, {7, 7, 7}});
  if (s.channels_last && random.below(8) == 0) kernel = random.pick<Ints>({{3, 1, 1}, {5, 1, 1}});
  const bool can_stride =
      kernel[1] > 1 && kernel[0] * kernel[1] <= 15 && !(kernel[0] == 3 && kernel[1] == 5);
  const int64_t stride = can_stride ? random.pick<int64_t>({1, 2}) : 1;
  s.batch = random.pick<int64_t>({0, 1, 1, 2, 3});
  s.channels = random.pick<int64_t>({1, 2, 3, 5, 8, 17, 24});
  s.multiplier = random.pick<int64_t>({1, 1, 1, 2, 3, 4});
  s.dtype = random.pick({DType::f32, DType::f32, DType::bf16, DType::f16});
  if (s.channels_last) s.channels = random.pick<int64_t>({2, 2, 4, 18, 54});
  const Ints input = {random.pick<int64_t>({1, 2, 3, 4, 7, 9}),
                      random.pick<int64_t>({1, 2, 3, 5, 8, 13, 20, 37}),
                      random.pick<int64_t>({1, 2, 4, 5, 7, 8, 12, 14, 16, 20, 29, 56, 131, 260})};
  for (int i = 0; i < 3; ++i) {
    s.input[i] = input[i];
    s.kernel[i] = kernel[i];
    s.stride[i] = i == 0 ? 1 : stride;
    s.dilation[i] = 1;
    const bool usual = random.below(3) > 0;
    s.padding[i] = usual ? kernel[i] / 2 : random.below(kernel[i] + 2);
    const int64_t after = usual ? kernel[i] / 2 : random.below(kernel[i] + 1);
    const int64_t room = input[i] + s.padding[i] + after - kernel[i];
    if (room < 0) return false;
    s.output[i] = room / s.stride[i] + 1;
  }
  return true;
}

void done(const char* error) {
  if (error != nullptr) fail(error);
}

template <bool kChannelsLast>
void run(Random& random) {
  Shape s{};
  s.channels_last = kChannelsLast;
  if (!random_shape(random, s)) return;
  const int64_t channels = s.channels * s.multiplier, taps = volume(s.kernel);
  const int64_t inputs = s.batch * s.channels * volume(s.input);
  const int64_t outputs = s.batch * channels * volume(s.output);
  if (outputs * taps > 1'000'000) return;  // the loops and fibers take their time
  done(cuda::depthwise_conv3d_refuses(s));
  const Tensor x = Tensor::random(inputs, s.dtype, random);
  const Tensor w = Tensor::random(channels * taps, s.dtype, random);
  const Tensor b = Tensor::random(channels, s.dtype, random);
  const Tensor g = Tensor::random(outputs, s.dtype, random);
  Tensor y(outputs, s.dtype), gx(inputs, s.dtype), gw(channels * taps, s.dtype),
      gb(channels, s.dtype);
  const void* bias = random.flip() ? b.data() : nullptr;

  std::vector<Expected> output(outputs), grad_x(inputs), grad_w(channels * taps), grad_b(channels);
  each_product(s, [&](int64_t i, int64_t k, int64_t o, int64_t) {
    output[o].add(x[i] * w[k]);
    grad_x[i].add(g[o] * w[k]);
    grad_w[k].add(g[o] * x[i]);
  });
  for (int64_t o = 0; o < outputs; ++o) {
    const int64_t c = (s.channels_last ? o : o / volume(s.output)) % channels;
    if (bias != nullptr) output[o].add(b[c]);
    grad_b[c].add(g[o]);
  }
  for (int64_t i = 0; bias != nullptr && i < inputs; ++i) {
    grad_x[i].add(b[(s.channels_last ? i : i / volume(s.input)) % s.channels]);
  }

  const cuda::Device device{random.pick({1, 4, 132}), nullptr};
  done(cuda::depthwise_conv3d(s, x.data(), w.data(), bias, y.data(), device));
  check("depthwise_conv3d", y, output, s.dtype, 40);
  done(cuda::depthwise_conv_transpose3d(s, g.data(), w.data(), bias, gx.data(), device));
  check("depthwise_conv_transpose3d", gx, grad_x, s.dtype, 40);

  Block scratch(cuda::depthwise_conv3d_grad_weight_scratch(s, x.data(), device));
  const auto grad_weight = [&](void* weight, void* its_bias) {
    done(cuda::depthwise_conv3d_grad_weight(s, g.data(), x.data(), scratch.memory.get(), weight,
                                            its_bias, device));
  };
  grad_weight(gw.data(), gb.data());
  check("depthwise_conv3d: grad_weight", gw, grad_w, s.dtype, 140);
  check("depthwise_conv3d: grad_bias", gb, grad_b, s.dtype, 140);
  if (random.flip()) grad_weight(nullptr, nullptr);
}

void divide(Random& random) {
  const auto number = [&](int64_t from) {
    const int64_t power = int64_t{1} << random.below(32);
    const int64_t n = random.flip() ? random.below(power) : power - 2 + random.below(4);
    return static_cast<int>(std::clamp<int64_t>(n, from, std::numeric_limits<int>::max()));
  };
  const int by = number(1), n = number(0);
  const cuda::Divisor divisor(by);
  int rest = n;
  const int found = divisor.take(rest);
  if (rest != n / by || found != n % by || divisor.divide(int64_t{n}) != n / by) {
    fail("cuda_divisor: a quotient is wrong");
  }
  const int64_t large = int64_t{n} << 31;
  if (divisor.divide(large) != large / by || divisor.rest(large) != large % by) {
    fail("cuda_divisor: a quotient of 64 bits is wrong");
  }
}

const Test divisor("cuda_divisor", divide);
const Test contiguous("cuda_depthwise_conv3d", run<false>);
const Test channels_last("cuda_depthwise_conv3d_channels_last", run<true>);

}  // namespace
}  // namespace vmf::test
