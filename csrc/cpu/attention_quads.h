// Channels-last memory to rows and back, by squares of four channels and four positions.
//
// A vector is filled with pieces of four neighbouring channels, each of another position; four such
// vectors, transposed within their quarters, are four rows. So the channels need only be a multiple
// of four, not of a vector, and one transposition takes eight cheap shuffles.
#pragma once

#include "cpu/vec.h"

namespace vmf {
namespace VMF_ISA {
namespace {

constexpr int kQuad = 4;
constexpr int kPieces = kLanes<float> / kQuad;

// Piece b of the result is the four elements at p + offset[b].
inline Vec<float> load_pieces(const float* p, const int64_t* offset) {
#if defined(__AVX512F__)
  __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p + offset[0]));
  v = _mm512_insertf32x4(v, _mm_loadu_ps(p + offset[1]), 1);
  v = _mm512_insertf32x4(v, _mm_loadu_ps(p + offset[2]), 2);
  return _mm512_insertf32x4(v, _mm_loadu_ps(p + offset[3]), 3);
#elif defined(__AVX2__)
  const __m256 v = _mm256_castps128_ps256(_mm_loadu_ps(p + offset[0]));
  return _mm256_insertf128_ps(v, _mm_loadu_ps(p + offset[1]), 1);
#else
  return load(p + offset[0]);
#endif
}

template <typename T>  // of 16 bits
inline Vec<float> load_pieces(const T* p, const int64_t* offset) {
  typedef uint64_t Pieces __attribute__((vector_size(VMF_VECTOR_BYTES / 2)));
  Pieces pieces = {};
  for (int b = 0; b < kPieces; ++b) {
    uint64_t piece;
    std::memcpy(&piece, p + offset[b], sizeof piece);
    pieces[b] = piece;
  }
  T whole[kLanes<float>];
  std::memcpy(whole, &pieces, sizeof whole);
  return load(whole);
}

inline void store_pieces(float* p, const int64_t* offset, Vec<float> v) {
#if defined(__AVX512F__)
  const __m128 none = _mm_setzero_ps();  // masked, because GCC 12 warns of the plain one
  _mm_storeu_ps(p + offset[0], _mm512_mask_extractf32x4_ps(none, 0xf, v, 0));
  _mm_storeu_ps(p + offset[1], _mm512_mask_extractf32x4_ps(none, 0xf, v, 1));
  _mm_storeu_ps(p + offset[2], _mm512_mask_extractf32x4_ps(none, 0xf, v, 2));
  _mm_storeu_ps(p + offset[3], _mm512_mask_extractf32x4_ps(none, 0xf, v, 3));
#elif defined(__AVX2__)
  _mm_storeu_ps(p + offset[0], _mm256_castps256_ps128(v));
  _mm_storeu_ps(p + offset[1], _mm256_extractf128_ps(v, 1));
#else
  store(p + offset[0], v);
#endif
}

template <typename T>  // of 16 bits
inline void store_pieces(T* p, const int64_t* offset, Vec<float> v) {
  T whole[kLanes<float>];
  store(whole, v);
  for (int b = 0; b < kPieces; ++b) std::memcpy(p + offset[b], whole + kQuad * b, 8);
}

// The lanes of a and b whose number, within their four, has the bit `Size` clear (Upper: set), in
// alternation of `Size` lanes.
template <int Size, bool Upper, int... L>
inline Vec<float> interleave(Vec<float> a, Vec<float> b, Sequence<L...>) {
  constexpr int lanes = sizeof...(L);
  constexpr int half = Upper ? 2 : 0;
  if constexpr (Size == 1) {  // a0 b0 a1 b1, or a2 b2 a3 b3
    return __builtin_shuffle(
        a, b, IndexVec<float>{(L / 4 * 4 + half + L % 4 / 2 + (L & 1 ? lanes : 0))...});
  } else {  // a0 a1 b0 b1, or a2 a3 b2 b3
    return __builtin_shuffle(a, b,
                             IndexVec<float>{(L / 4 * 4 + half + L % 2 + (L & 2 ? lanes : 0))...});
  }
}

// Transposes the 4 x 4 squares of v[0..3].
inline void transpose_quads(Vec<float>* v) {
  using Lanes = typename MakeSequence<kLanes<float>>::Type;
  const Vec<float> a = interleave<1, false>(v[0], v[1], Lanes());
  const Vec<float> b = interleave<1, true>(v[0], v[1], Lanes());
  const Vec<float> c = interleave<1, false>(v[2], v[3], Lanes());
  const Vec<float> d = interleave<1, true>(v[2], v[3], Lanes());
  v[0] = interleave<2, false>(a, c, Lanes());
  v[1] = interleave<2, true>(a, c, Lanes());
  v[2] = interleave<2, false>(b, d, Lanes());
  v[3] = interleave<2, true>(b, d, Lanes());
}

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
