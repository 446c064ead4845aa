// Division by a number that the host knows, for kernels: a multiplication and a shift.
#pragma once

#include "cuda/device.cuh"

namespace vmf::cuda {

// A number from 1 on, by which kernels divide numbers from 0 on. Integer division takes a GPU
// some 20 instructions of 32 bits, and 100 of 64.
class Divisor {
 public:
  Divisor() = default;
  Divisor(int by) : by_(by) {  // not explicit: it is used like the number
    int bits = 0;
    while (int64_t{1} << bits < by) ++bits;
    // ceil(2^(31 + bits) / by) is below 2^32; what that is too much by, times any n below 2^31, is
    // below 2^(31 + bits), so that the quotient is exact.
    if (by > 1) magic_ = static_cast<uint32_t>(((int64_t{1} << (31 + bits)) + by - 1) / by);
    shift_ = bits - 1;
  }

  __host__ __device__ operator int() const { return by_; }

  // n / by.
  __host__ __device__ int divide(int n) const {
    if (by_ == 1) return n;
    return static_cast<int>(
        static_cast<uint32_t>(uint64_t{static_cast<uint32_t>(n)} * magic_ >> 32) >> shift_);
  }
  __host__ __device__ int64_t divide(int64_t n) const {
    return n < int64_t{1} << 31 ? divide(static_cast<int>(n)) : n / by_;
  }
  // n % by.
  __host__ __device__ int rest(int64_t n) const { return static_cast<int>(n - divide(n) * by_); }

  // n becomes n / by; returns n % by.
  __host__ __device__ int take(int& n) const {
    const int all = n;
    n = divide(n);
    return all - n * by_;
  }

 private:
  int by_;
  uint32_t magic_;
  int shift_;
};

}  // namespace vmf::cuda
