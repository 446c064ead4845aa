// Few-query attention, forward and backward: one pass over the features each.
//
// Forward keeps, for each token and head of an item, the largest score so far, and the sums of
// exponentials and of weighted features below it (online softmax). Scores are in units of log 2.
#include "cpu/few_query_attention.h"

#include <cmath>
#include <limits>

#include "cpu/attention_blocks.h"
#include "cpu/attention_channels.h"
#include "cpu/attention_prefetch.h"
#include "cpu/exp.h"
#include "workspace.h"

namespace vmf {
namespace VMF_ISA {
namespace {

using Shape = AttentionShape;

template <typename Real>
constexpr Real kInfinity = std::numeric_limits<Real>::infinity();

// ---- Partial results of an item: sums (tokens, channels), then (heads, tokens) of two kinds

template <typename Real>
struct Partial {
  Real *sums, *largest, *exponentials;
};

int64_t partial_size(const Shape& s) { return s.tokens * (s.channels + 2 * s.heads); }

template <typename Real>
Partial<Real> partial(const Shape& s, Real* scratch, int64_t item) {
  Real* at = scratch + item * partial_size(s);
  return {at, at + s.tokens * s.channels, at + s.tokens * (s.channels + s.heads)};
}

// The largest of a row of whole vectors, in every lane; `most` if none is larger. In four chains,
// as an instruction takes four cycles.
template <typename Real>
Vec<Real> largest_of(const Real* row, int64_t vectors, Vec<Real> most) {
  constexpr int lanes = kLanes<Real>, kChains = 4;
  Vec<Real> chain[kChains] = {most, most, most, most};
  int64_t i = 0;
  for (; i + kChains <= vectors; i += kChains) {
    for (int k = 0; k < kChains; ++k) chain[k] = larger(load(row + (i + k) * lanes), chain[k]);
  }
  for (; i < vectors; ++i) chain[0] = larger(load(row + i * lanes), chain[0]);
  const auto both = [](Vec<Real> a, Vec<Real> b) { return larger(a, b); };
  return fold_lanes<Real>(both(both(chain[0], chain[1]), both(chain[2], chain[3])), both);
}

// What infinite scores are measured from: 0, so that exponentials of -infinity are 0, not NaN.
template <typename Real>
Real origin(Real largest) {
  return largest == -kInfinity<Real> ? 0 : largest;
}

template <typename Real>
Real exp2_of(Real t) {
  return exp2(splat<Real>(t))[0];
}

// Turns a row of scores into probabilities times a constant, that of `largest`. Returns by how much
// all that was summed before must be multiplied.
template <typename Real>
Real soften(Real* row, int64_t count, Real& largest, Real& exponentials) {
  constexpr int lanes = kLanes<Real>;
  if (const int64_t rest = count % lanes) {
    Real* last = row + count - rest;
    store(last, first_lanes<Real>(load(last), rest, -kInfinity<Real>));
  }
  const Real before = largest;
  largest = largest_of(row, ceil_div(count, lanes), splat<Real>(largest))[0];
  const Vec<Real> zero = splat<Real>(origin(largest));
  Vec<Real> sum = {};
  for (int64_t i = 0; i < count; i += lanes) {
    const Vec<Real> p = exp2(load(row + i) - zero);
    store(row + i, p);
    sum += p;
  }
  const Real factor = before == largest ? Real{1} : exp2_of<Real>(before - zero[0]);
  sum = fold_lanes<Real>(sum, [](Vec<Real> a, Vec<Real> b) { return a + b; });
  exponentials = exponentials * factor + sum[0];
  return factor;
}

template <typename T>
void forward_item(const Shape& s, const Cut& cut, const Item& item, const T* query,
                  const T* features, Partial<Arithmetic<T>> out, char* memory) {
  using Real = Arithmetic<T>;
  constexpr int lanes = kLanes<Real>;
  Real* const weights = reinterpret_cast<Real*>(memory);
  const Rows<Real> scores = {weights + round_up(s.channels * s.tokens, lanes), cut.stride};
  const Rows<Real> packed = scores.from(s.tokens);
  fill_weights(s, query, s.scale * kLog2e, weights, s.tokens);
  std::fill_n(out.sums, s.tokens * s.channels, Real{});
  std::fill_n(out.largest, s.heads * s.tokens, -kInfinity<Real>);
  std::fill_n(out.exponentials, s.heads * s.tokens, Real{});
  for (int64_t begin = item.begin; begin < item.end; begin += cut.block) {
    const int64_t count = std::min(cut.block, item.end - begin);
    const int64_t vectors = ceil_div(count, lanes);
    const Rows<const Real> x = rows_of(s, features, begin, count, packed);
    Ahead ahead(s, item, begin, count, features, s.heads * (s.tokens + 1), 1);
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t c = h * cut.width;
      dot<Real>(x.from(c), cut.width, weights + c * s.tokens, s.tokens, s.tokens, scores, vectors);
      ahead.step();
      for (int64_t m = 0; m < s.tokens; ++m) {
        ahead.step();
        const int64_t at = h * s.tokens + m;
        const Real factor = soften(scores[m], count, out.largest[at], out.exponentials[at]);
        if (factor == 1) continue;
        for (int64_t k = 0; k < cut.width; ++k) out.sums[m * s.channels + c + k] *= factor;
      }
      if (along_channels<T>(s.channels_last, cut.width)) {
        reduce_channels(scores, s.tokens, features + begin * s.channels + c, s.channels, cut.width,
                        count, out.sums + c, s.channels);
      } else {
        reduce<Real>(scores, s.tokens, x.from(c), cut.width, vectors, out.sums + c, s.channels);
      }
    }
  }
}

int64_t items(const Shape& s) {
  int64_t count = 0;
  with_storage(s.dtype, [&](auto storage) {
    count = s.batch * cut<Arithmetic<decltype(storage)>>(s).items;
  });
  return count;
}

int64_t size_of_real(const Shape& s) { return s.dtype == DType::f64 ? 8 : 4; }

int64_t scratch(const Shape& s) { return items(s) * partial_size(s) * size_of_real(s); }

void forward(const Shape& s, const void* query, const void* features, void* scratch, int64_t begin,
             int64_t end) {
  with_storage(s.dtype, [&](auto storage) {
    using T = decltype(storage);
    using Real = Arithmetic<T>;
    const Cut cut = VMF_ISA::cut<Real>(s);
    Parts parts;
    parts.add(s.channels * s.tokens * sizeof(Real));
    parts.add((s.tokens + s.channels) * cut.stride * sizeof(Real));
    char* memory = static_cast<char*>(workspace(parts.bytes()));
    for (int64_t i = begin; i < end; ++i) {
      const Item item = find_item(s, cut, i);
      forward_item(s, cut, item, static_cast<const T*>(query) + item.sample * s.tokens * s.channels,
                   static_cast<const T*>(features) + item.sample * s.channels * s.positions,
                   partial(s, static_cast<Real*>(scratch), i), memory);
    }
  });
}

// Combines the items of one sample, head and token; `factors` has room for one an item.
template <typename T>
void combine(const Shape& s, int64_t count, Arithmetic<T>* scratch, int64_t m, int64_t h,
             Arithmetic<T>* factors, T* output, Arithmetic<T>* lse, Arithmetic<T>* exact) {
  using Real = Arithmetic<T>;
  const int64_t width = s.channels / s.heads, at = h * s.tokens + m;
  Real largest = -kInfinity<Real>;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, partial(s, scratch, i).largest[at]);
  }
  double total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Partial<Real> p = partial(s, scratch, i);
    const Real below = p.largest[at] - origin(largest);
    factors[i] = below == 0 ? 1 : exp2_of(below);
    total += p.exponentials[at] * static_cast<double>(factors[i]);
  }
  *lse = static_cast<Real>((origin(largest) + std::log2(total)) / kLog2e);
  add_rows<Real>(partial(s, scratch, 0).sums + m * s.channels + h * width, partial_size(s), count,
                 factors, width, [&](int64_t k, const double* sums, int64_t n) {
                   Vec<Real> v;
                   for (int i = 0; i < kLanes<Real>; ++i) v[i] = static_cast<Real>(sums[i] / total);
                   store_some(output + k, v, n);
                   if (exact != nullptr) store_some(exact + k, v, n);
                 });
}

void finish(const Shape& s, const void* scratch, void* output, void* lse, void* exact) {
  with_storage(s.dtype, [&](auto storage) {
    using T = decltype(storage);
    using Real = Arithmetic<T>;
    const int64_t count = cut<Real>(s).items, width = s.channels / s.heads;
    Real* factors = static_cast<Real*>(workspace(count * sizeof(Real)));
    for (int64_t b = 0; b < s.batch; ++b) {
      Real* sample =
          const_cast<Real*>(static_cast<const Real*>(scratch)) + b * count * partial_size(s);
      for (int64_t m = 0; m < s.tokens; ++m) {
        for (int64_t h = 0; h < s.heads; ++h) {
          const int64_t at = (b * s.tokens + m) * s.channels + h * width;
          combine<T>(s, count, sample, m, h, factors, static_cast<T*>(output) + at,
                     static_cast<Real*>(lse) + (b * s.heads + h) * s.tokens + m,
                     exact == nullptr ? nullptr : static_cast<Real*>(exact) + at);
        }
      }
    }
  });
}

// ---- Backward

// What an item needs of its sample's tokens.
template <typename Real>
struct Tokens {
  Real* query;  // weights (channels, tokens), times scale: scores in units of log 2
  Real* both;   // weights (channels, 2 tokens) of grad_x: grad_output, then the query
  Real* rows;   // the same as (2 tokens, channels)
  Real* lse;    // (heads, tokens), in units of log 2
  Real* means;  // (heads, tokens): the row sums of p (g x^T), which are g . output
};

template <typename T>
void fill_tokens(const Shape& s, const T* grad_output, const T* query, const Arithmetic<T>* output,
                 const Arithmetic<T>* lse, Tokens<Arithmetic<T>> to) {
  using Real = Arithmetic<T>;
  const int64_t width = s.channels / s.heads;
  fill_weights(s, query, s.scale * kLog2e, to.query, s.tokens);
  fill_weights(s, grad_output, 1, to.both, 2 * s.tokens);
  fill_weights(s, query, 1, to.both + s.tokens, 2 * s.tokens);
  fill_rows(s, grad_output, to.rows);
  fill_rows(s, query, to.rows + s.tokens * s.channels);
  for (int64_t h = 0; h < s.heads; ++h) {
    for (int64_t m = 0; m < s.tokens; ++m) {
      to.lse[h * s.tokens + m] = static_cast<Real>(lse[h * s.tokens + m] * kLog2e);
      Real sum = 0;
      for (int64_t c = h * width; c < (h + 1) * width; ++c) {
        sum += to.both[c * 2 * s.tokens + m] * output[m * s.channels + c];
      }
      to.means[h * s.tokens + m] = sum;
    }
  }
}

// Scores and g x^T of one token to probabilities and the gradients of the scores.
template <typename Real>
void differentiate(Real* scores, Real* grads, int64_t count, Real lse, Real mean, Real scale) {
  constexpr int lanes = kLanes<Real>;
  for (int64_t i = 0; i < count; i += lanes) {
    Vec<Real> p = exp2(load(scores + i) - lse);
    if (count - i < lanes) p = first_lanes<Real>(p, count - i, 0);
    store(scores + i, p);
    store(grads + i, p * (load(grads + i) - mean) * scale);
  }
}

template <typename T>
void backward_item(const Shape& s, const Cut& cut, const Item& item, Tokens<Arithmetic<T>> tokens,
                   const T* features, T* grad_features, Arithmetic<T>* grad_query,
                   Rows<Arithmetic<T>> scores) {
  using Real = Arithmetic<T>;
  constexpr int lanes = kLanes<Real>;
  const Rows<Real> grads = scores.from(s.tokens), packed = scores.from(2 * s.tokens);
  const bool direct = along_channels<T>(s.channels_last, cut.width) && 2 * s.tokens <= kOuterRows;
  std::fill_n(grad_query, s.tokens * s.channels, Real{});
  for (int64_t begin = item.begin; begin < item.end; begin += cut.block) {
    const int64_t count = std::min(cut.block, item.end - begin);
    const int64_t vectors = ceil_div(count, lanes);
    const Rows<const Real> x = rows_of(s, features, begin, count, packed);
    Ahead ahead(s, item, begin, count, features, s.heads * (s.tokens + 2), 2);
    const Rows<Real> y = rows_for(s, grad_features, begin, count, packed);
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t c = h * cut.width;
      dot<Real>(x.from(c), cut.width, tokens.query + c * s.tokens, s.tokens, s.tokens, scores,
                vectors);
      ahead.step();
      const Real* both = tokens.both + c * 2 * s.tokens;
      dot<Real>(x.from(c), cut.width, both, 2 * s.tokens, s.tokens, grads, vectors);
      ahead.step();
      for (int64_t m = 0; m < s.tokens; ++m) {
        ahead.step();
        const int64_t at = h * s.tokens + m;
        differentiate<Real>(scores[m], grads[m], count, tokens.lse[at], tokens.means[at],
                            static_cast<Real>(s.scale));
      }
      if (direct) {
        const int64_t at = begin * s.channels + c;
        reduce_channels(grads, s.tokens, features + at, s.channels, cut.width, count,
                        grad_query + c, s.channels);
        outer_channels<T>(nullptr, tokens.rows + c, s.channels, 2 * s.tokens, scores, cut.width,
                          count, grad_features + at);
      } else {
        reduce<Real>(grads, s.tokens, x.from(c), cut.width, vectors, grad_query + c, s.channels);
        outer<Real>({nullptr, 0}, both, 2 * s.tokens, 2 * s.tokens, scores, cut.width, y.from(c),
                    vectors);
      }
    }
    if (!direct) put_rows<T>(s, y, grad_features, begin, count);
  }
}

int64_t backward_scratch(const Shape& s) {
  return items(s) * s.tokens * s.channels * size_of_real(s);
}

void backward(const Shape& s, const void* grad_output, const void* query, const void* features,
              const void* output, const void* lse, void* grad_features, void* scratch,
              int64_t begin, int64_t end) {
  with_storage(s.dtype, [&](auto storage) {
    using T = decltype(storage);
    using Real = Arithmetic<T>;
    const Cut cut = VMF_ISA::cut<Real>(s);
    const int64_t of_tokens = s.tokens * s.channels, of_features = s.channels * s.positions;
    Parts parts;
    const int64_t sizes[] = {of_tokens,          2 * of_tokens,
                             2 * of_tokens,      s.heads * s.tokens,
                             s.heads * s.tokens, (2 * s.tokens + s.channels) * cut.stride};
    int64_t at[6];
    for (int k = 0; k < 6; ++k) at[k] = parts.add(sizes[k] * sizeof(Real));
    char* memory = static_cast<char*>(workspace(parts.bytes()));
    Real* part[6];
    for (int k = 0; k < 6; ++k) part[k] = reinterpret_cast<Real*>(memory + at[k]);
    const Tokens<Real> tokens = {part[0], part[1], part[2], part[3], part[4]};
    int64_t filled = -1;
    for (int64_t i = begin; i < end; ++i) {
      const Item item = find_item(s, cut, i);
      if (item.sample != filled) {
        filled = item.sample;
        fill_tokens<T>(s, static_cast<const T*>(grad_output) + filled * of_tokens,
                       static_cast<const T*>(query) + filled * of_tokens,
                       static_cast<const Real*>(output) + filled * of_tokens,
                       static_cast<const Real*>(lse) + filled * s.heads * s.tokens, tokens);
      }
      backward_item<T>(s, cut, item, tokens, static_cast<const T*>(features) + filled * of_features,
                       static_cast<T*>(grad_features) + filled * of_features,
                       static_cast<Real*>(scratch) + i * of_tokens, {part[5], cut.stride});
    }
  });
}

void backward_finish(const Shape& s, const void* scratch, void* grad_query) {
  with_storage(s.dtype, [&](auto storage) {
    using T = decltype(storage);
    using Real = Arithmetic<T>;
    const int64_t count = cut<Real>(s).items, size = s.tokens * s.channels;
    for (int64_t b = 0; b < s.batch; ++b) {
      add_partial_sums<T>(static_cast<const Real*>(scratch) + b * count * size, size, count, size,
                          static_cast<T*>(grad_query) + b * size);
    }
  });
}

}  // namespace

extern const FewQueryAttentionKernels few_query_attention_kernels = {
    items, scratch, forward, finish, backward_scratch, backward, backward_finish};

}  // namespace VMF_ISA
}  // namespace vmf
