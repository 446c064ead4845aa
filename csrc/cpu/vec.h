// Vectors of the instruction set that this file is compiled for, and the storage types.
//
// `Vec<float>` and `Vec<double>` are GCC vectors as wide as the registers: + * < and ?: work on
// them. Everything is in an unnamed namespace because the same source is compiled for several
// instruction sets: the linker must never take one copy for another.
#pragma once

#include <cstdint>
#include <cstring>

#include "vmf/dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VMF_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VMF_VECTOR_BYTES 32
#else
#define VMF_VECTOR_BYTES 16
#endif

namespace vmf {
namespace VMF_ISA {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// Whether 16-bit numbers are widened by an instruction or two: rows of them need not be packed
// then.
constexpr bool kWidens = VMF_VECTOR_BYTES > 16;

// Whether lanes of 32 bits are permuted by one instruction, as they are loaded.
constexpr bool kPermutes = VMF_VECTOR_BYTES > 16;

template <typename Real>
struct VecTypes;

template <>
struct VecTypes<float> {
  typedef float Value __attribute__((vector_size(VMF_VECTOR_BYTES)));
  typedef int32_t Index __attribute__((vector_size(VMF_VECTOR_BYTES)));
};

template <>
struct VecTypes<double> {
  typedef double Value __attribute__((vector_size(VMF_VECTOR_BYTES)));
  typedef int64_t Index __attribute__((vector_size(VMF_VECTOR_BYTES)));
};

template <typename Real>
using Vec = typename VecTypes<Real>::Value;

// Lane numbers for `permute`, or all-ones and zeros as a mask.
template <typename Real>
using IndexVec = typename VecTypes<Real>::Index;

template <typename Real>
constexpr int kLanes = VMF_VECTOR_BYTES / static_cast<int>(sizeof(Real));

// Multiply-adds contract to FMA: GCC's default for C++ (-ffp-contract=fast).
template <typename V>
inline V fma(V a, V b, V c) {
  return a * b + c;
}

// Keeps a loaded value in its register: GCC would rather load it again for each use.
template <typename V>
inline void pin(V& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

// Makes GCC step from address to address: it would rather compute all of a tile's ahead of the
// loop, and spill them.
template <typename T>
inline void pin_address(T*& p) {
  asm("" : "+r"(p));
}

// Keeps an offset in a register: GCC would rather make chains of additions of several.
inline void pin_offset(int64_t& i) { asm("" : "+r"(i)); }

// All lanes x. (0 + x would cost an addition, since it makes -0 to 0.)
template <typename Real>
inline Vec<Real> splat(Real x) {
  return x - Vec<Real>{};
}

// Asks for the cache line of p: into the second-level cache to be read soon, ...
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// ... or to be written, which saves the wait for its ownership.
inline void prefetch_to_write(const void* p) {
#if defined(__AVX2__)
  asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(p)));
#else
  __builtin_prefetch(p, 1);
#endif
}

// Lane i of the result is lane index[i] of v.
template <typename V, typename Index>
inline V permute(V v, Index index) {
  return __builtin_shuffle(v, index);
}

// ---- Storage types ----

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// The arithmetic type of a storage type.
template <typename T>
struct ArithmeticOf {
  using Type = float;
};
template <>
struct ArithmeticOf<double> {
  using Type = double;
};
template <typename T>
using Arithmetic = typename ArithmeticOf<T>::Type;

// Calls `function` with a value of the storage type that `dtype` names.
template <typename Function>
inline void with_storage(DType dtype, Function function) {
  switch (dtype) {
    case DType::f64:
      return function(double());
    case DType::f32:
      return function(float());
    case DType::bf16:
      return function(BFloat16());
    case DType::f16:
      return function(Float16());
  }
}

typedef uint16_t HalfBits __attribute__((vector_size(VMF_VECTOR_BYTES / 2)));
typedef uint32_t FloatBits __attribute__((vector_size(VMF_VECTOR_BYTES)));

inline float widen(Float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  uint32_t bits = sign | ((rest << 13) + (rest >= 0x7c00u ? 0x70000000u : 0x38000000u));
  if (rest < 0x400u) {  // zero or subnormal
    const float y = static_cast<float>(rest) * 0x1p-24f;
    std::memcpy(&bits, &y, 4);
    bits |= sign;
  }
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

inline Float16 to_float16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (rest >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to infinity
  } else if (rest < 0x38800000u) {
    float y;  // subnormal: adding 0.5 rounds at the last bit of the result
    std::memcpy(&y, &rest, 4);
    y += 0.5f;
    std::memcpy(&half, &y, 4);
    half -= 0x3f000000u;
  } else {
    half = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  }
  return Float16{static_cast<uint16_t>(sign | half)};
}

// ---- Whole vectors: storage in memory, arithmetic in registers ----

inline Vec<float> load(const float* p) {
  Vec<float> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Vec<double> load(const double* p) {
  Vec<double> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// GCC 12 does not find x86's one instruction for __builtin_convertvector.
inline FloatBits widen_bits(const HalfBits& half) {
#if defined(__AVX512F__)
  return reinterpret_cast<FloatBits>(
      _mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(half)));
#elif defined(__AVX2__)
  return reinterpret_cast<FloatBits>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(half)));
#else
  return __builtin_convertvector(half, FloatBits);
#endif
}

inline HalfBits narrow_bits(const FloatBits& bits) {
#if defined(__AVX512F__)
  return reinterpret_cast<HalfBits>(
      _mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(bits)));
#else
  return __builtin_convertvector(bits, HalfBits);
#endif
}

inline Vec<float> load(const BFloat16* p) {
  HalfBits half;
  std::memcpy(&half, p, sizeof half);
  return reinterpret_cast<Vec<float>>(widen_bits(half) << 16);
}

inline Vec<float> load(const Float16* p) {
#if defined(__AVX512F__)
  // Masked, because GCC 12 warns of the undefined source operand of the plain one.
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = widen(p[i]);
  return v;
#endif
}

inline void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof v); }

inline void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof v); }

inline void store(BFloat16* p, Vec<float> v) {
  const FloatBits bits = reinterpret_cast<FloatBits>(v);
  const FloatBits nearest_even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const FloatBits nan = FloatBits{} + 0x7fc0u;
  const HalfBits half = narrow_bits(v == v ? nearest_even : nan);
  std::memcpy(p, &half, sizeof half);
}

inline void store(Float16* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) p[i] = to_float16(v[i]);
#endif
}

// ---- The first n lanes only; nothing else is touched in memory ----

// Loads zeros into the other lanes.
template <typename T>
inline Vec<Arithmetic<T>> load_some(const T* p, int64_t n) {
  constexpr int lanes = kLanes<Arithmetic<T>>;
  if (n >= lanes) return load(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return reinterpret_cast<Vec<Arithmetic<T>>>(_mm512_maskz_loadu_epi32((1u << n) - 1, p));
  } else if constexpr (sizeof(T) == 2) {
    T whole[lanes];
    const __m256i some = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
    std::memcpy(whole, &some, sizeof some);
    return load(whole);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i wanted = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
    return reinterpret_cast<Vec<Arithmetic<T>>>(_mm256_maskload_ps(p, wanted));
  }
#endif
  T whole[lanes] = {};
  for (int64_t i = 0; i < n; ++i) whole[i] = p[i];
  return load(whole);
}

template <typename T>
inline void store_some(T* p, Vec<Arithmetic<T>> v, int64_t n) {
  constexpr int lanes = kLanes<Arithmetic<T>>;
  if (n >= lanes) return store(p, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_mask_storeu_epi32(p, (1u << n) - 1, reinterpret_cast<__m512i>(v));
  }
#endif
  T whole[lanes];
  store(whole, v);
  for (int64_t i = 0; i < n; ++i) p[i] = whole[i];
}

// ---- Lanes by their numbers ----

template <int... L>
struct Sequence {};
template <int N, int... L>
struct MakeSequence : MakeSequence<N - 1, N - 1, L...> {};
template <int... L>
struct MakeSequence<0, L...> {
  using Type = Sequence<L...>;
};

template <typename Index, int... L>
inline Index lane_numbers(Sequence<L...>) {
  return Index{L...};
}

// Lanes from the n-th on become `other`, ...
template <typename Real>
inline Vec<Real> first_lanes(Vec<Real> v, int64_t n, Real other) {
  const auto lane = lane_numbers<IndexVec<Real>>(typename MakeSequence<kLanes<Real>>::Type());
  return lane < static_cast<decltype(lane[0] + 0)>(n) ? v : splat<Real>(other);
}

// ... and those before the n-th 0.
template <typename Real>
inline Vec<Real> last_lanes(Vec<Real> v, int64_t n) {
  const auto lane = lane_numbers<IndexVec<Real>>(typename MakeSequence<kLanes<Real>>::Type());
  return lane < static_cast<decltype(lane[0] + 0)>(n) ? Vec<Real>{} : v;
}

// ---- Transposition of a square of vectors ----

// Swaps the upper right blocks of `Size` lanes, in `a`, with the lower left ones, in `b`.
template <int Size, typename Index, typename V, int... L>
inline void swap_blocks(V& a, V& b, Sequence<L...>) {
  constexpr int lanes = sizeof...(L);
  const V upper = __builtin_shuffle(a, b, Index{(L & Size ? L - Size + lanes : L)...});
  b = __builtin_shuffle(a, b, Index{(L & Size ? L + lanes : L + Size)...});
  a = upper;
}

template <int Size, typename Index, typename V, int... L>
inline V exchange_blocks(V v, Sequence<L...>) {
  return __builtin_shuffle(v, Index{(L ^ Size)...});
}

// A vector of what f makes of all lanes of v, in every lane.
template <typename Real, typename F, int Size = kLanes<Real> / 2>
inline Vec<Real> fold_lanes(Vec<Real> v, const F& f) {
  if constexpr (Size > 0) {
    using Numbers = typename MakeSequence<kLanes<Real>>::Type;
    v = f(v, exchange_blocks<Size, IndexVec<Real>>(v, Numbers()));
    return fold_lanes<Real, F, Size / 2>(v, f);
  } else {
    return v;
  }
}

template <typename Real, int Size = kLanes<Real> / 2>
inline void transpose(Vec<Real>* rows) {
  if constexpr (Size > 0) {
    constexpr int lanes = kLanes<Real>;
    for (int i = 0; i < lanes; ++i) {
      if (i & Size) continue;
      swap_blocks<Size, IndexVec<Real>>(rows[i], rows[i + Size],
                                        typename MakeSequence<lanes>::Type());
    }
    transpose<Real, Size / 2>(rows);
  }
}

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
