// What the tests of the torch-free core share: random shapes and values, tensors in blocks of
// exactly their size (so that AddressSanitizer sees a step beyond), comparison, and the list of
// tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "vmf/dtype.h"

namespace vmf::test {

struct Random {
  explicit Random(uint64_t seed) : engine(seed) {}

  template <class T>
  T pick(std::initializer_list<T> choices) {
    return *(choices.begin() + engine() % choices.size());
  }
  int64_t below(int64_t end) { return static_cast<int64_t>(engine() % static_cast<uint64_t>(end)); }
  bool flip() { return below(2) == 1; }
  double value() { return std::uniform_real_distribution<double>(-1, 1)(engine); }

  std::mt19937_64 engine;
};

inline int64_t size_of(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

// Of one rounding to the type.
inline double epsilon(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 0x1p-53;
    case DType::f32:
      return 0x1p-24;
    case DType::bf16:
      return 0x1p-8;
    case DType::f16:
      return 0x1p-11;
  }
  return 0;
}

// Memory of exactly `bytes`, all ones: NaN in every floating type.
struct Block {
  explicit Block(int64_t bytes)
      : memory(static_cast<char*>(std::malloc(static_cast<size_t>(bytes))), &std::free) {
    std::memset(memory.get(), 0xff, static_cast<size_t>(bytes));
  }
  std::unique_ptr<char, void (*)(void*)> memory;
};

// A dense tensor of numbers in one of the storage types.
class Tensor {
 public:
  Tensor(int64_t count, DType dtype)
      : count_(count), dtype_(dtype), block_(count * size_of(dtype)) {}

  static Tensor random(int64_t count, DType dtype, Random& random, double scale = 1) {
    Tensor tensor(count, dtype);
    for (int64_t i = 0; i < count; ++i) tensor.set(i, scale * random.value());
    return tensor;
  }

  void* data() { return block_.memory.get(); }
  const void* data() const { return block_.memory.get(); }
  int64_t count() const { return count_; }

  double operator[](int64_t i) const {
    const char* p = block_.memory.get() + i * size_of(dtype_);
    switch (dtype_) {
      case DType::f64:
        return read<double>(p);
      case DType::f32:
        return read<float>(p);
      case DType::f16:
        return read<_Float16>(p);
      case DType::bf16:
        break;
    }
    const uint32_t bits = uint32_t{read<uint16_t>(p)} << 16;
    return read<float>(reinterpret_cast<const char*>(&bits));
  }

  void set(int64_t i, double value) {
    char* p = block_.memory.get() + i * size_of(dtype_);
    switch (dtype_) {
      case DType::f64:
        return write(p, value);
      case DType::f32:
        return write(p, static_cast<float>(value));
      case DType::f16:
        return write(p, static_cast<_Float16>(value));
      case DType::bf16: {  // rounded towards zero, which is as good a value as any
        const float rounded = static_cast<float>(value);
        uint32_t bits;
        std::memcpy(&bits, &rounded, 4);
        return write(p, static_cast<uint16_t>(bits >> 16));
      }
    }
  }

 private:
  template <class T>
  static T read(const char* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
  }
  template <class T>
  static void write(char* p, T value) {
    std::memcpy(p, &value, sizeof value);
  }

  int64_t count_;
  DType dtype_;
  Block block_;
};

// What a result should be, and the sum of the magnitudes that were added up: rounding errors are
// in proportion to that.
struct Expected {
  double value = 0, magnitude = 0;

  void add(double term) {
    value += term;
    magnitude += std::fabs(term);
  }
};

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "FAILED %s\n", what.c_str());
  std::exit(1);
}

// Ends the program unless every element is as expected. `slack`: roundings that may add up.
inline void check(const std::string& what, const Tensor& actual,
                  const std::vector<Expected>& expected, DType dtype, double slack) {
  const double sums = epsilon(dtype == DType::f64 ? DType::f64 : DType::f32);
  for (int64_t i = 0; i < actual.count(); ++i) {
    const Expected& e = expected[static_cast<size_t>(i)];
    const double tolerance = slack * sums * e.magnitude + epsilon(dtype) * std::fabs(e.value) * 2 +
                             1e-7 * (dtype == DType::f16);
    const double error = std::fabs(actual[i] - e.value);
    if (!(error <= tolerance)) {
      char text[200];
      std::snprintf(text, sizeof text, ": element %lld is %.9g, expected %.9g (tolerance %.3g)",
                    static_cast<long long>(i), actual[i], e.value, tolerance);
      fail(what + text);
    }
  }
}

// Runs [0, items) in pieces, the last one first: any split in any order must do.
inline void in_pieces(int64_t items, Random& random,
                      const std::function<void(int64_t, int64_t)>& run) {
  int64_t end = items;
  while (end > 0) {
    const int64_t begin = random.flip() ? 0 : random.below(end);
    run(begin, end);
    end = begin;
  }
  run(0, 0);
}

// One random case of an op; the name of an op's tests is that of the op.
struct Test {
  Test(std::string name, void (*run)(Random&)) : name(std::move(name)), run(run), next(first) {
    first = this;
  }

  std::string name;
  void (*run)(Random&);
  Test* next;
  static inline Test* first = nullptr;
};

}  // namespace vmf::test
