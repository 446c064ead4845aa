// Stores around the caches.
//
// A store first reads the line that it goes to. These write whole lines without, and leave nothing
// in the caches. A line that ordinary stores write as well takes many times as long.
#pragma once

#include "vec.h"

namespace vmf {
namespace VMF_ISA {
namespace {

// They write a multiple of so many bytes, aligned to as many.
constexpr int64_t kStreamBytes = 32;

#if defined(__AVX2__)
// Whether there are such stores of T.
template <typename T>
constexpr bool kStreams = sizeof(T) == 4;

#if defined(__AVX512F__)
template <typename T>
inline void stream(T* p, Vec<T> v) {
  const __m512i bits = reinterpret_cast<__m512i>(v);
  if (reinterpret_cast<uintptr_t>(p) % sizeof v == 0) {
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bits);
  }
  // Masked, because GCC 12 warns of the undefined source operand of the plain ones.
  __m256i* const halves = reinterpret_cast<__m256i*>(p);
  _mm256_stream_si256(halves, _mm512_maskz_extracti64x4_epi64(0xf, bits, 0));
  _mm256_stream_si256(halves + 1, _mm512_maskz_extracti64x4_epi64(0xf, bits, 1));
}
#else
template <typename T>
inline void stream(T* p, Vec<T> v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
}
#endif

// To be called before others may read what was written.
inline void finish_streams() { _mm_sfence(); }
#else
template <typename T>
constexpr bool kStreams = false;

inline void finish_streams() {}
#endif

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
