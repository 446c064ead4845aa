// Few-key attention, forward and backward: one pass over the features each.
//
// A position's softmax runs over the few tokens, so it is complete within its lane. Scores are in
// units of log 2.
#include "cpu/few_key_attention.h"

#include "cpu/attention_blocks.h"
#include "cpu/attention_channels.h"
#include "cpu/attention_prefetch.h"
#include "cpu/exp.h"
#include "workspace.h"

namespace vmf {
namespace VMF_ISA {
namespace {

using Shape = AttentionShape;

constexpr int64_t kShortSum = 8;  // longer sums over tokens are made of such

// Scores to probabilities, over the rows, in each lane; 0 behind the last position.
template <typename Real>
void soften(Rows<Real> scores, int64_t tokens, int64_t count) {
  constexpr int lanes = kLanes<Real>;
  for (int64_t i = 0; i < count; i += lanes) {
    Vec<Real> most = load(scores[0] + i), sum = {};
    for (int64_t m = 1; m < tokens; ++m) most = larger(load(scores[m] + i), most);
    for (int64_t first = 0; first < tokens; first += kShortSum) {
      Vec<Real> part = {};
      for (int64_t m = first; m < std::min(tokens, first + kShortSum); ++m) {
        const Vec<Real> p = exp2(load(scores[m] + i) - most);
        store(scores[m] + i, p);
        part += p;
      }
      sum += part;
    }
    const Vec<Real> factor = splat<Real>(1) / sum;
    for (int64_t m = 0; m < tokens; ++m) {
      Vec<Real> p = load(scores[m] + i) * factor;
      if (count - i < lanes) p = first_lanes<Real>(p, count - i, 0);
      store(scores[m] + i, p);
    }
  }
}

// Probabilities and g v^T to the gradients of the scores.
template <typename Real>
void differentiate(Rows<const Real> p, Rows<Real> grads, int64_t tokens, int64_t count,
                   Real scale) {
  constexpr int lanes = kLanes<Real>;
  for (int64_t i = 0; i < count; i += lanes) {
    Vec<Real> mean = {};
    for (int64_t first = 0; first < tokens; first += kShortSum) {
      Vec<Real> part = {};
      for (int64_t m = first; m < std::min(tokens, first + kShortSum); ++m) {
        part = fma(load(p[m] + i), load(grads[m] + i), part);
      }
      mean += part;
    }
    for (int64_t m = 0; m < tokens; ++m) {
      Vec<Real> grad = load(p[m] + i) * (load(grads[m] + i) - mean) * scale;
      if (count - i < lanes) grad = first_lanes<Real>(grad, count - i, 0);
      store(grads[m] + i, grad);
    }
  }
}

template <typename Real>
struct Weights {                   // of one sample
  Real *scaled_key, *key, *value;  // (channels, tokens)
  Real *key_rows, *value_rows;     // (tokens, channels)
};

template <typename T>
void forward_item(const Shape& s, const Cut& cut, const Item& item, bool residual,
                  Weights<Arithmetic<T>> weights, const T* features, T* output,
                  Rows<Arithmetic<T>> scores) {
  using Real = Arithmetic<T>;
  constexpr int lanes = kLanes<Real>;
  const Rows<Real> packed = scores.from(s.tokens);
  const bool direct = along_channels<T>(s.channels_last, cut.width) && s.tokens <= kOuterRows;
  for (int64_t begin = item.begin; begin < item.end; begin += cut.block) {
    const int64_t count = std::min(cut.block, item.end - begin);
    const int64_t vectors = ceil_div(count, lanes);
    const Rows<const Real> x = rows_of(s, features, begin, count, packed);
    Ahead ahead(s, item, begin, count, features, 2 * s.heads, 2);
    const Rows<Real> y = rows_for(s, output, begin, count, packed);
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t c = h * cut.width, w = c * s.tokens;
      dot<Real>(x.from(c), cut.width, weights.scaled_key + w, s.tokens, s.tokens, scores, vectors);
      ahead.step();
      soften(scores, s.tokens, count);
      ahead.step();
      if (direct) {
        const int64_t at = begin * s.channels + c;
        outer_channels<T>(residual ? features + at : nullptr, weights.value_rows + c, s.channels,
                          s.tokens, scores, cut.width, count, output + at);
      } else {
        outer<Real>(residual ? x.from(c) : Rows<const Real>{nullptr, 0}, weights.value + w,
                    s.tokens, s.tokens, scores, cut.width, y.from(c), vectors);
      }
    }
    if (!direct) put_rows<T>(s, y, output, begin, count);
  }
}

template <typename T>
void backward_item(const Shape& s, const Cut& cut, const Item& item, bool residual,
                   Weights<Arithmetic<T>> weights, const T* grad_output, const T* features,
                   T* grad_features, Arithmetic<T>* grad_key, Rows<Arithmetic<T>> scores) {
  using Real = Arithmetic<T>;
  constexpr int lanes = kLanes<Real>;
  const Rows<Real> grads = scores.from(s.tokens), packed_x = scores.from(2 * s.tokens);
  const Rows<Real> packed_g = packed_x.from(s.channels);
  const bool direct = along_channels<T>(s.channels_last, cut.width) && s.tokens <= kOuterRows;
  Real* const grad_value = grad_key + s.tokens * s.channels;
  std::fill_n(grad_key, 2 * s.tokens * s.channels, Real{});
  for (int64_t begin = item.begin; begin < item.end; begin += cut.block) {
    const int64_t count = std::min(cut.block, item.end - begin);
    const int64_t vectors = ceil_div(count, lanes);
    const Rows<const Real> x = rows_of(s, features, begin, count, packed_x);
    const Rows<const Real> g = rows_of(s, grad_output, begin, count, packed_g);
    Ahead ahead_x(s, item, begin, count, features, 2 * s.heads, 3);
    Ahead ahead_g(s, item, begin, count, grad_output, 2 * s.heads, 3);
    const Rows<Real> y = rows_for(s, grad_features, begin, count, packed_g);
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t c = h * cut.width, w = c * s.tokens;
      dot<Real>(x.from(c), cut.width, weights.scaled_key + w, s.tokens, s.tokens, scores, vectors);
      ahead_x.step();
      dot<Real>(g.from(c), cut.width, weights.value + w, s.tokens, s.tokens, grads, vectors);
      ahead_g.step();
      soften(scores, s.tokens, count);
      ahead_x.step();
      differentiate<Real>(scores, grads, s.tokens, count, static_cast<Real>(s.scale));
      ahead_g.step();
      if (direct) {
        const int64_t at = begin * s.channels + c;
        reduce_channels(grads, s.tokens, features + at, s.channels, cut.width, count, grad_key + c,
                        s.channels);
        reduce_channels(scores, s.tokens, grad_output + at, s.channels, cut.width, count,
                        grad_value + c, s.channels);
        outer_channels<T>(residual ? grad_output + at : nullptr, weights.key_rows + c, s.channels,
                          s.tokens, grads, cut.width, count, grad_features + at);
      } else {
        reduce<Real>(grads, s.tokens, x.from(c), cut.width, vectors, grad_key + c, s.channels);
        reduce<Real>(scores, s.tokens, g.from(c), cut.width, vectors, grad_value + c, s.channels);
        outer<Real>(residual ? g.from(c) : Rows<const Real>{nullptr, 0}, weights.key + w, s.tokens,
                    s.tokens, grads, cut.width, y.from(c), vectors);
      }
    }
    if (!direct) put_rows<T>(s, y, grad_features, begin, count);
  }
}

// ---- Entry points

int64_t items(const Shape& s) {
  int64_t count = 0;
  with_storage(s.dtype, [&](auto storage) {
    count = s.batch * cut<Arithmetic<decltype(storage)>>(s).items;
  });
  return count;
}

// Calls f(item, number, weights of its sample, rows in the workspace) for the items.
template <typename T, typename Function>
void for_items(const Shape& s, const T* key, const T* value, int64_t rows, int64_t begin,
               int64_t end, const Function& f) {
  using Real = Arithmetic<T>;
  const Cut cut = VMF_ISA::cut<Real>(s);
  const int64_t size = s.tokens * s.channels;
  Parts parts;
  const int64_t of_weights = parts.add(5 * size * sizeof(Real));
  const int64_t of_rows = parts.add(rows * cut.stride * sizeof(Real));
  char* memory = static_cast<char*>(workspace(parts.bytes()));
  Real* w = reinterpret_cast<Real*>(memory + of_weights);
  const Weights<Real> weights = {w, w + size, w + 2 * size, w + 3 * size, w + 4 * size};
  int64_t filled = -1;
  for (int64_t i = begin; i < end; ++i) {
    const Item item = find_item(s, cut, i);
    if (item.sample != filled) {
      filled = item.sample;
      fill_weights(s, key + filled * size, s.scale * kLog2e, weights.scaled_key, s.tokens);
      fill_weights(s, key + filled * size, 1, weights.key, s.tokens);
      fill_weights(s, value + filled * size, 1, weights.value, s.tokens);
      fill_rows(s, key + filled * size, weights.key_rows);
      fill_rows(s, value + filled * size, weights.value_rows);
    }
    f(cut, item, i, weights, Rows<Real>{reinterpret_cast<Real*>(memory + of_rows), cut.stride});
  }
}

void forward(const Shape& s, bool residual, const void* features, const void* key,
             const void* value, void* output, int64_t begin, int64_t end) {
  with_storage(s.dtype, [&](auto storage) {
    using T = decltype(storage);
    for_items(s, static_cast<const T*>(key), static_cast<const T*>(value), s.tokens + s.channels,
              begin, end, [&](const Cut& cut, const Item& item, int64_t, auto weights, auto rows) {
                const int64_t sample = item.sample * s.channels * s.positions;
                forward_item<T>(s, cut, item, residual, weights,
                                static_cast<const T*>(features) + sample,
                                static_cast<T*>(output) + sample, rows);
              });
  });
}

int64_t backward_scratch(const Shape& s) {
  return items(s) * 2 * s.tokens * s.channels * (s.dtype == DType::f64 ? 8 : 4);
}

void backward(const Shape& s, bool residual, const void* grad_output, const void* features,
              const void* key, const void* value, void* grad_features, void* scratch, int64_t begin,
              int64_t end) {
  with_storage(s.dtype, [&](auto storage) {
    using T = decltype(storage);
    for_items(
        s, static_cast<const T*>(key), static_cast<const T*>(value), 2 * (s.tokens + s.channels),
        begin, end, [&](const Cut& cut, const Item& item, int64_t i, auto weights, auto rows) {
          const int64_t sample = item.sample * s.channels * s.positions;
          backward_item<T>(
              s, cut, item, residual, weights, static_cast<const T*>(grad_output) + sample,
              static_cast<const T*>(features) + sample, static_cast<T*>(grad_features) + sample,
              static_cast<Arithmetic<T>*>(scratch) + i * 2 * s.tokens * s.channels, rows);
        });
  });
}

void backward_finish(const Shape& s, const void* scratch, void* grad_key, void* grad_value) {
  with_storage(s.dtype, [&](auto storage) {
    using T = decltype(storage);
    using Real = Arithmetic<T>;
    const int64_t count = cut<Real>(s).items, size = s.tokens * s.channels;
    for (int64_t b = 0; b < s.batch; ++b) {
      const Real* partial = static_cast<const Real*>(scratch) + b * count * 2 * size;
      add_partial_sums<T>(partial, 2 * size, count, size, static_cast<T*>(grad_key) + b * size);
      add_partial_sums<T>(partial + size, 2 * size, count, size,
                          static_cast<T*>(grad_value) + b * size);
    }
  });
}

}  // namespace

extern const FewKeyAttentionKernels few_key_attention_kernels = {items, forward, backward_scratch,
                                                                 backward, backward_finish};

}  // namespace VMF_ISA
}  // namespace vmf
