// How the positions of a sample are cut, and how a block of them becomes rows of arithmetic.
//
// Samples are cut into stretches of positions (the items: units of threads and of partial sums),
// and those into blocks, whose rows stay in the second-level cache. The cuts follow from the shape.
#pragma once

#include <algorithm>

#include "cpu/attention_products.h"
#include "cpu/attention_quads.h"
#include "cpu/integers.h"
#include "vmf/attention.h"

namespace vmf {
namespace VMF_ISA {
namespace {

constexpr int64_t kItemElements = 65536;   // features of an item
constexpr int64_t kBlockElements = 16384;  // of all rows of a block: 64 KiB of float32

struct Cut {
  int64_t width;    // channels of a head
  int64_t stretch;  // positions of an item, but the last of a sample
  int64_t items;    // of a sample
  int64_t block;    // positions of a block: whole vectors
  int64_t stride;   // of packed rows: no multiple of a page, whose lines would share cache sets
};

template <typename Real>
Cut cut(const AttentionShape& s) {
  constexpr int64_t unit = kLanes<Real>;
  const int64_t wanted = std::max<int64_t>(1, kItemElements / s.channels);
  const int64_t stretch = round_up(ceil_div(s.positions, ceil_div(s.positions, wanted)), unit);
  const int64_t rows = s.channels + 2 * s.tokens;
  const int64_t most =
      std::clamp<int64_t>(kBlockElements / rows / unit * unit, unit, kChain * kLanes<Real>);
  const int64_t block = round_up(ceil_div(stretch, ceil_div(stretch, most)), unit);
  return {s.channels / s.heads, stretch, ceil_div(s.positions, stretch), block,
          block + kLanes<Real>};
}

struct Item {
  int64_t sample, begin, end;  // positions of the sample
};

inline Item find_item(const AttentionShape& s, const Cut& c, int64_t i) {
  const int64_t begin = i % c.items * c.stretch;
  return {i / c.items, begin, std::min(s.positions, begin + c.stretch)};
}

// ---- Packing: features to rows of arithmetic, whole vectors with zeros behind the last position

// Calls f(c, offsets) for each four channels, the last four perhaps again, at the `lanes` positions
// from `i`; offsets of quarter-vectors are those of position 4 b + k, in [k][b], none beyond
// `last`.
template <typename Function>
inline void for_quads(int64_t i, int64_t last, int64_t channels, const Function& f) {
  int64_t offset[kQuad][kPieces];
  for (int k = 0; k < kQuad; ++k) {
    for (int b = 0; b < kPieces; ++b) {
      offset[k][b] = std::min(last, i + kQuad * b + k) * channels;
    }
  }
  for (int64_t c = 0; c < channels; c += kQuad) f(std::min(c, channels - kQuad), offset);
}

template <typename T>
void pack_channels_last(const T* x, int64_t channels, int64_t count, Rows<Arithmetic<T>> rows) {
  using Real = Arithmetic<T>;
  constexpr int lanes = kLanes<Real>;
  if constexpr (sizeof(T) <= 4) {
    if (channels >= kQuad) {
      for (int64_t i = 0; i < count; i += lanes) {
        for_quads(i, count - 1, channels, [&](int64_t c, auto& offset) {
          Vec<float> v[kQuad];
          for (int k = 0; k < kQuad; ++k) v[k] = load_pieces(x + c, offset[k]);
          transpose_quads(v);
          for (int k = 0; k < kQuad; ++k) {
            if (count - i < lanes) v[k] = first_lanes<float>(v[k], count - i, 0);
            store(rows[c + k] + i, v[k]);
          }
        });
      }
      return;
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < round_up(count, lanes); ++i) {
      rows[c][i] = i < count ? load_some(x + i * channels + c, 1)[0] : Real{};
    }
  }
}

template <typename T>
void unpack_channels_last(Rows<const Arithmetic<T>> rows, int64_t channels, int64_t count, T* y) {
  using Real = Arithmetic<T>;
  constexpr int lanes = kLanes<Real>;
  if constexpr (sizeof(T) <= 4) {
    if (channels >= kQuad) {
      for (int64_t i = 0; i < count; i += lanes) {
        for_quads(i, count - 1, channels, [&](int64_t c, auto& offset) {
          Vec<float> v[kQuad];
          for (int k = 0; k < kQuad; ++k) v[k] = load(rows[c + k] + i);
          transpose_quads(v);
          for (int k = 0; k < kQuad; ++k) {
            if (count - i >= lanes) {
              store_pieces(y + c, offset[k], v[k]);
              continue;
            }
            T whole[lanes];
            store(whole, v[k]);
            for (int b = 0; b < kPieces && i + kQuad * b + k < count; ++b) {
              std::memcpy(y + c + offset[k][b], whole + kQuad * b, kQuad * sizeof(T));
            }
          }
        });
      }
      return;
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < count; ++i) {
      store_some(y + i * channels + c, splat<Real>(rows[c][i]), 1);
    }
  }
}

template <typename T>
void pack_channels_first(const T* x, int64_t channels, int64_t step, int64_t count,
                         Rows<Arithmetic<T>> rows) {
  using Real = Arithmetic<T>;
  for (int64_t c = 0; c < channels; ++c, x += step) {
    for (int64_t i = 0; i < count; i += kLanes<Real>) {
      store(rows[c] + i, load_some(x + i, count - i));
    }
  }
}

template <typename T>
void unpack_channels_first(Rows<const Arithmetic<T>> rows, int64_t channels, int64_t step,
                           int64_t count, T* y) {
  using Real = Arithmetic<T>;
  for (int64_t c = 0; c < channels; ++c, y += step) {
    for (int64_t i = 0; i < count; i += kLanes<Real>) {
      store_some(y + i, load(rows[c] + i), count - i);
    }
  }
}

// Whether the features in memory already are the rows of a block.
template <typename T>
bool are_rows(const AttentionShape& s, int64_t count) {
  return !s.channels_last && sizeof(T) == sizeof(Arithmetic<T>) &&
         count % kLanes<Arithmetic<T>> == 0;
}

// The rows of `count` positions of a sample from `begin`; in `packed` where memory has no such.
template <typename T>
Rows<const Arithmetic<T>> rows_of(const AttentionShape& s, const T* sample, int64_t begin,
                                  int64_t count, Rows<Arithmetic<T>> packed) {
  if constexpr (sizeof(T) == sizeof(Arithmetic<T>)) {
    if (are_rows<T>(s, count)) return {sample + begin, s.positions};
  }
  if (s.channels_last) {
    pack_channels_last(sample + begin * s.channels, s.channels, count, packed);
  } else {
    pack_channels_first(sample + begin, s.channels, s.positions, count, packed);
  }
  return packed;
}

// Where to compute the rows of `count` positions: in the features, or in `packed` for `put_rows`.
template <typename T>
Rows<Arithmetic<T>> rows_for(const AttentionShape& s, T* sample, int64_t begin, int64_t count,
                             Rows<Arithmetic<T>> packed) {
  if constexpr (sizeof(T) == sizeof(Arithmetic<T>)) {
    if (are_rows<T>(s, count)) return {sample + begin, s.positions};
  }
  return packed;
}

template <typename T>
void put_rows(const AttentionShape& s, Rows<const Arithmetic<T>> rows, T* sample, int64_t begin,
              int64_t count) {
  if (are_rows<T>(s, count)) return;
  if (s.channels_last) {
    unpack_channels_last(rows, s.channels, count, sample + begin * s.channels);
  } else {
    unpack_channels_first(rows, s.channels, s.positions, count, sample + begin);
  }
}

// ---- Weights: what the tokens have for one sample, as w[c * step + m]

template <typename T>
void fill_weights(const AttentionShape& s, const T* tokens, double factor, Arithmetic<T>* w,
                  int64_t step) {
  using Real = Arithmetic<T>;
  constexpr int lanes = kLanes<Real>;
  for (int64_t m = 0; m < s.tokens; ++m, tokens += s.channels) {
    for (int64_t c = 0; c < s.channels; c += lanes) {
      const int64_t n = std::min<int64_t>(lanes, s.channels - c);
      Real values[lanes];
      store(values, load_some(tokens + c, n));
      for (int k = 0; k < lanes; ++k) values[k] = static_cast<Real>(values[k] * factor);
      for (int64_t k = 0; k < n; ++k) w[(c + k) * step + m] = values[k];
    }
  }
}

// The same as rows w[m * channels + c], unchanged.
template <typename T>
void fill_rows(const AttentionShape& s, const T* tokens, Arithmetic<T>* w) {
  for (int64_t i = 0; i < s.tokens * s.channels; i += kLanes<Arithmetic<T>>) {
    const int64_t n = s.tokens * s.channels - i;
    store_some(w + i, load_some(tokens + i, n), n);
  }
}

// Sums of `count` rows of partial sums, `stride` apart, in their order, each row times its factor
// (null: 1). Calls put(k, sums of k to k + n, n) for each vector of at most `width` of them.
template <typename Real, typename Put>
void add_rows(const Real* rows, int64_t stride, int64_t count, const Real* factors, int64_t width,
              const Put& put) {
  constexpr int lanes = kLanes<Real>;
  for (int64_t k = 0; k < width; k += lanes) {
    const int64_t n = std::min<int64_t>(lanes, width - k);
    double sums[lanes] = {};
    for (int64_t r = 0; r < count; ++r) {
      Real values[lanes];
      store(values, load_some(rows + r * stride + k, n));
      const double factor = factors == nullptr ? 1 : factors[r];
      for (int i = 0; i < lanes; ++i) sums[i] += values[i] * factor;
    }
    put(k, sums, n);
  }
}

template <typename T>
void add_partial_sums(const Arithmetic<T>* partial, int64_t stride, int64_t rows, int64_t count,
                      T* sums) {
  using Real = Arithmetic<T>;
  add_rows<Real>(partial, stride, rows, nullptr, count,
                 [&](int64_t k, const double* of, int64_t n) {
                   Vec<Real> v;
                   for (int i = 0; i < kLanes<Real>; ++i) v[i] = static_cast<Real>(of[i]);
                   store_some(sums + k, v, n);
                 });
}

// Cuts a thread's workspace into parts that begin at cache lines.
class Parts {
 public:
  int64_t add(int64_t bytes) {
    const int64_t at = bytes_;
    bytes_ += round_up(bytes, 64);
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
