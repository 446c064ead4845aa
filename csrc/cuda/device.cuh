// What the kernels take from CUDA, in one place: tests compile the same kernels for the host with
// tests/csrc/cuda_on_host.h in its stead.
#pragma once

#include <cstdint>

#include "vmf/dtype.h"

namespace vmf::cuda {
constexpr int kThreads = 128;  // of every block
}  // namespace vmf::cuda

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace vmf::cuda {

__device__ inline float f16_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ inline float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline uint32_t float_to_bits(float x) { return __float_as_uint(x); }
__device__ inline uint16_t float_to_f16(float x) { return __half_as_ushort(__float2half_rn(x)); }
__device__ inline uint16_t float_to_bf16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
// The first in the lower half.
__device__ inline uint32_t floats_to_bf16(float first, float second) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(first, second);
  return __bfloat16_as_ushort(two.x) | static_cast<uint32_t>(__bfloat16_as_ushort(two.y)) << 16;
}
__device__ inline uint32_t floats_to_f16(float first, float second) {
  const __half2 two = __floats2half2_rn(first, second);
  return __half_as_ushort(__low2half(two)) |
         static_cast<uint32_t>(__half_as_ushort(__high2half(two))) << 16;
}

// Memory that the threads of a block share; it holds nothing yet.
template <class T>
__device__ T& shared_memory() {
  __shared__ T memory;
  return memory;
}

// Of CUDA, as 13000.
inline int runtime_version() { return CUDART_VERSION; }

// Null, or what the runtime says of the launch.
template <class Arguments>
const char* launch(void (*kernel)(Arguments), int64_t blocks, const Arguments& arguments,
                   void* stream) {
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      arguments);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace vmf::cuda
#else
#include "cuda_on_host.h"
#endif

namespace vmf::cuda {

// How elements are stored.
struct F32 {
  using Bits = uint32_t;
  static __device__ float to_float(uint32_t bits) { return bits_to_float(bits); }
  static __device__ uint32_t from_float(float x) { return float_to_bits(x); }
};
struct BF16 {
  using Bits = uint16_t;
  static __device__ float to_float(uint32_t bits) { return bits_to_float(bits << 16); }
  static __device__ uint16_t from_float(float x) { return float_to_bf16(x); }
};
struct F16 {
  using Bits = uint16_t;
  static __device__ float to_float(uint32_t bits) {
    return f16_to_float(static_cast<uint16_t>(bits));
  }
  static __device__ uint16_t from_float(float x) { return float_to_f16(x); }
};

// Runs f with the type that a kernel is told when it runs: the same branch for all threads.
template <class F>
__device__ auto with_type(DType dtype, const F& f) {
  if (dtype == DType::f32) return f(F32{});
  if (dtype == DType::bf16) return f(BF16{});
  return f(F16{});
}

__device__ inline float load(const void* data, int64_t i, DType dtype) {
  return with_type(dtype, [&](auto type) {
    return type.to_float(static_cast<const typename decltype(type)::Bits*>(data)[i]);
  });
}

__device__ inline void store(void* data, int64_t i, DType dtype, float x) {
  with_type(dtype, [&](auto type) {
    static_cast<typename decltype(type)::Bits*>(data)[i] = type.from_float(x);
  });
}

__host__ __device__ constexpr int64_t round_up(int64_t x, int64_t to) {
  return (x + to - 1) / to * to;
}
__host__ __device__ constexpr int64_t divide_up(int64_t x, int64_t by) { return (x + by - 1) / by; }

}  // namespace vmf::cuda
