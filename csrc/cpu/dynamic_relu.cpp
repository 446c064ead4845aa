// Dynamic ReLU, forward and backward: one pass over the features each, bound by memory.
//
// An item is a stretch of positions of one sample in all its channels (channels last), or one
// channel of one sample (channels first). Sums run in float over at most kChain values for each
// lane, then in double.
#include "cpu/dynamic_relu.h"

#include "cpu/integers.h"
#include "cpu/vec.h"

namespace vmf {
namespace VMF_ISA {
namespace {

using Shape = DynamicReluShape;

constexpr int64_t kChain = 128;
constexpr int64_t kItemElements = 16384;  // of a channels-last item: 64 KiB of float32
constexpr int kBlock = 4;                 // vectors of channels whose sums stay in registers

int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Positions of a channels-last item.
int64_t stretch(const Shape& s) { return max(1, min(kChain, kItemElements / max(1, s.channels))); }

int64_t items_per_sample(const Shape& s) {
  if (!s.channels_last) return s.channels;
  return ceil_div(s.positions, stretch(s));
}

int64_t items(const Shape& s) { return s.positions == 0 ? 0 : s.batch * items_per_sample(s); }

// Partial sums of a sample: one row of channels for each stretch, or a single row.
int64_t rows_per_sample(const Shape& s) { return s.channels_last ? items_per_sample(s) : 1; }

template <typename V>
V greater(V p, V q) {  // NaN if either is
  const V larger = p > q ? p : q;
  return p != p ? p : larger;
}

// The gradient's way through max(p, q): all to the larger one, half to each where they tie. NaN
// goes nowhere in particular: its product with the gradient is NaN in either branch.
template <typename V>
V share_of_first(V p, V q) {
  const V one = V{} + 1, half = one / 2;
  return p > q ? one : (p == q ? half : V{});
}

template <typename Real>
struct Sums {
  Vec<Real> first = {}, second = {};
};

template <typename Real>
Vec<Real> backward_vector(Vec<Real> g, Vec<Real> x, Vec<Real> a1, Vec<Real> a2, Sums<Real>& sums) {
  const Vec<Real> share = share_of_first<Vec<Real>>(a1 * x, a2 * x);
  const Vec<Real> g1 = g * share, g2 = g - g1;
  sums.first = fma(g1, x, sums.first);
  sums.second = fma(g2, x, sums.second);
  return g1 * a1 + g2 * a2;
}

// ---- Channels last: vectors run along the channels ----

template <typename T>
void forward_stretch(const Shape& s, const T* x, const T* a1, const T* a2, T* y, int64_t count) {
  using Real = Arithmetic<T>;
  for (int64_t i = 0; i < count; ++i, x += s.channels, y += s.channels) {
    for (int64_t c = 0; c < s.channels; c += kLanes<Real>) {
      const int64_t n = s.channels - c;
      const Vec<Real> v = load_some(x + c, n);
      const Vec<Real> p = load_some(a1 + c, n) * v, q = load_some(a2 + c, n) * v;
      store_some(y + c, greater<Vec<Real>>(p, q), n);
    }
  }
}

template <typename T, int Block>
void backward_block(const Shape& s, const T* g, const T* x, const T* a1, const T* a2, T* gx,
                    Arithmetic<T>* sums1, Arithmetic<T>* sums2, int64_t count, int64_t n) {
  using Real = Arithmetic<T>;
  constexpr int lanes = kLanes<Real>;
  Vec<Real> s1[Block], s2[Block];
  Sums<Real> sums[Block];
  for (int k = 0; k < Block; ++k) {
    s1[k] = load_some(a1 + k * lanes, n - k * lanes);
    s2[k] = load_some(a2 + k * lanes, n - k * lanes);
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int k = 0; k < Block; ++k) {
      const int64_t at = i * s.channels + k * lanes, left = n - k * lanes;
      const Vec<Real> v = backward_vector<Real>(load_some(g + at, left), load_some(x + at, left),
                                                s1[k], s2[k], sums[k]);
      store_some(gx + at, v, left);
    }
  }
  for (int k = 0; k < Block; ++k) {
    store_some(sums1 + k * lanes, sums[k].first, n - k * lanes);
    store_some(sums2 + k * lanes, sums[k].second, n - k * lanes);
  }
}

template <typename T>
void backward_stretch(const Shape& s, const T* g, const T* x, const T* a1, const T* a2, T* gx,
                      Arithmetic<T>* sums, int64_t count) {
  constexpr int64_t lanes = kLanes<Arithmetic<T>>;
  Arithmetic<T>* sums2 = sums + s.channels;
  int64_t c = 0;
  for (; s.channels - c >= kBlock * lanes; c += kBlock * lanes) {
    backward_block<T, kBlock>(s, g + c, x + c, a1 + c, a2 + c, gx + c, sums + c, sums2 + c, count,
                              kBlock * lanes);
  }
  for (; c < s.channels; c += lanes) {
    backward_block<T, 1>(s, g + c, x + c, a1 + c, a2 + c, gx + c, sums + c, sums2 + c, count,
                         min(lanes, s.channels - c));
  }
}

// ---- Channels first: vectors run along the positions of one channel ----

template <typename T>
void forward_row(const T* x, T a1, T a2, T* y, int64_t count) {
  using Real = Arithmetic<T>;
  const Vec<Real> s1 = splat<Real>(load_some(&a1, 1)[0]), s2 = splat<Real>(load_some(&a2, 1)[0]);
  for (int64_t i = 0; i < count; i += kLanes<Real>) {
    const Vec<Real> v = load_some(x + i, count - i);
    store_some(y + i, greater<Vec<Real>>(s1 * v, s2 * v), count - i);
  }
}

template <typename T>
void backward_row(const T* g, const T* x, T a1, T a2, T* gx, Arithmetic<T>* sum1,
                  Arithmetic<T>* sum2, int64_t count) {
  using Real = Arithmetic<T>;
  constexpr int lanes = kLanes<Real>;
  const Vec<Real> s1 = splat<Real>(load_some(&a1, 1)[0]), s2 = splat<Real>(load_some(&a2, 1)[0]);
  double total1 = 0, total2 = 0;
  for (int64_t start = 0; start < count; start += kChain * lanes) {
    const int64_t end = min(count, start + kChain * lanes);
    Sums<Real> sums;
    for (int64_t i = start; i < end; i += lanes) {
      const Vec<Real> v =
          backward_vector<Real>(load_some(g + i, end - i), load_some(x + i, end - i), s1, s2, sums);
      store_some(gx + i, v, end - i);
    }
    for (int k = 0; k < lanes; ++k) {
      total1 += sums.first[k];
      total2 += sums.second[k];
    }
  }
  *sum1 = static_cast<Real>(total1);
  *sum2 = static_cast<Real>(total2);
}

// ---- Entry points ----

struct Item {
  int64_t sample, first, count, offset, row;
};

// Where item `i` begins, how many positions it has, and which row of partial sums is its own.
Item find_item(const Shape& s, int64_t i) {
  const int64_t each = items_per_sample(s), sample = i / each, within = i % each;
  const int64_t start = sample * s.channels * s.positions;
  if (!s.channels_last) {
    return {sample, sample * s.channels + within, s.positions, start + within * s.positions,
            sample};
  }
  const int64_t position = within * stretch(s);
  return {sample, sample * s.channels, min(stretch(s), s.positions - position),
          start + position * s.channels, i};
}

void forward(const Shape& s, const void* features, const void* a1, const void* a2, void* output,
             int64_t begin, int64_t end) {
  with_storage(s.dtype, [&](auto storage) {
    using T = decltype(storage);
    const T *x = static_cast<const T*>(features), *s1 = static_cast<const T*>(a1),
            *s2 = static_cast<const T*>(a2);
    T* y = static_cast<T*>(output);
    for (int64_t i = begin; i < end; ++i) {
      const Item item = find_item(s, i);
      if (s.channels_last) {
        forward_stretch(s, x + item.offset, s1 + item.first, s2 + item.first, y + item.offset,
                        item.count);
      } else {
        forward_row(x + item.offset, s1[item.first], s2[item.first], y + item.offset, item.count);
      }
    }
  });
}

int64_t scratch(const Shape& s) {
  const int64_t size = s.dtype == DType::f64 ? 8 : 4;
  return s.positions == 0 ? 0 : s.batch * rows_per_sample(s) * 2 * s.channels * size;
}

void backward(const Shape& s, const void* grad_output, const void* features, const void* a1,
              const void* a2, void* grad_features, void* scratch, int64_t begin, int64_t end) {
  with_storage(s.dtype, [&](auto storage) {
    using T = decltype(storage);
    const T *g = static_cast<const T*>(grad_output), *x = static_cast<const T*>(features),
            *s1 = static_cast<const T*>(a1), *s2 = static_cast<const T*>(a2);
    T* gx = static_cast<T*>(grad_features);
    for (int64_t i = begin; i < end; ++i) {
      const Item item = find_item(s, i);
      auto* sums = static_cast<Arithmetic<T>*>(scratch) + item.row * 2 * s.channels;
      if (s.channels_last) {
        backward_stretch(s, g + item.offset, x + item.offset, s1 + item.first, s2 + item.first,
                         gx + item.offset, sums, item.count);
      } else {
        const int64_t c = item.first - item.sample * s.channels;
        backward_row(g + item.offset, x + item.offset, s1[item.first], s2[item.first],
                     gx + item.offset, sums + c, sums + s.channels + c, item.count);
      }
    }
  });
}

void finish(const Shape& s, const void* scratch, void* grad_a1, void* grad_a2) {
  with_storage(s.dtype, [&](auto storage) {
    using T = decltype(storage);
    using Real = Arithmetic<T>;
    const int64_t rows = s.positions == 0 ? 0 : rows_per_sample(s);
    void* const grads[] = {grad_a1, grad_a2};
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t k = 0; k < 2 * s.channels; ++k) {
        const Real* partial = static_cast<const Real*>(scratch) + b * rows * 2 * s.channels + k;
        double total = 0;
        for (int64_t r = 0; r < rows; ++r) total += partial[r * 2 * s.channels];
        T* grad = static_cast<T*>(grads[k / s.channels]) + b * s.channels + k % s.channels;
        store_some(grad, splat<Real>(static_cast<Real>(total)), 1);
      }
    }
  });
}

}  // namespace

extern const DynamicReluKernels dynamic_relu_kernels = {items, forward, scratch, backward, finish};

}  // namespace VMF_ISA
}  // namespace vmf
