// The inner kernel of forward and input gradient: some rows written, of some vectors of lanes.
//
// A row of the result is a sum of 1D convolutions, one per (kT, kH) tap that is not padding. Which
// they are is a list made by the caller, so the kernel knows neither T nor H nor dilation: it keeps
// a tile of R results of V vectors in registers and runs down the list. Rows are read where they
// lie, in a tensor or packed: columns that are padding are left out, and only the few that a run of
// taps may meet at either end of a row are looked at. 16-bit rows are widened as they are read.
#pragma once

#include <type_traits>

#include "depthwise_conv3d_plan.h"
#include "depthwise_conv3d_prefetch.h"
#include "stream.h"
#include "vec.h"

namespace vmf {
namespace VMF_ISA {
namespace {

struct RowTap {
  int64_t from;    // what is under the first tap of the first result, in Rows::frame
  int64_t column;  // ... and in its row
  int64_t weight;  // the first tap of the run, in the weights
};

// The runs of taps of a row written.
struct RowTaps {
  int64_t begin, count;
};

// One vector of lanes; what is said of rows and weights counts from here. `to` is of T, or of the
// arithmetic type where results are `wide`. Lanes that share channels take them by `index`.
template <typename T>
struct RowVector {
  const T* from;
  const Arithmetic<T>*weight, *bias;
  char* to;
  IndexVec<Arithmetic<T>> index;
};

// What the kernel does, with rows of T: distances are in elements. Each result is the bias plus
// sums of `chain` runs of taps each, more than one where T is the arithmetic type only; shorter
// chains lose fewer digits.
template <typename T>
struct Rows {
  const RowVector<T>* vector;
  int64_t vectors, vectors_together;  // so many take turns at a tile of columns
  const RowTaps* row;
  int64_t rows, rows_together;  // the same
  const RowTap* taps;
  int64_t frame;  // where the frame begins from which the rows of taps count
  int64_t chain;
  int64_t width, column;          // columns of a row read, and from one to the next
  int64_t advance;                // columns read, from one result to the next
  int64_t columns;                // results in a row
  int64_t first, step, row_step;  // the first result, from one to the next, and from row to row
  bool wide;                      // results are stored as they were computed
  Prefetcher *next_from, *next_to;
};

template <typename T>
using RowKernel = void (*)(const Rows<T>& rows);

// In bytes.
template <typename T>
inline int64_t result_size(const Rows<T>& rows) {
  return static_cast<int64_t>(rows.wide ? sizeof(Arithmetic<T>) : sizeof(T));
}

// Stores a result of rows of T, around the caches with `Streams`: kernels of their own, because
// others are up to 1.1 times as fast without such stores beside theirs.
template <typename T, bool Streams>
inline void store_result(char* to, bool wide, Vec<Arithmetic<T>> result) {
  using Real = Arithmetic<T>;
  if constexpr (Streams) return stream(reinterpret_cast<T*>(to), result);
  if (sizeof(T) == sizeof(Real) || wide) return store(reinterpret_cast<Real*>(to), result);
  store(reinterpret_cast<T*>(to), result);
}

// Columns are addressed from every fourth one: a single chain of additions would be too slow.
class ColumnOffsets {
 public:
  // For columns that are `distance` elements apart.
  explicit ColumnOffsets(int64_t distance) : offset_{0, distance, 2 * distance, 3 * distance} {
    for (int i = 1; i < kAhead; ++i) pin_offset(offset_[i]);
  }

  int64_t operator[](int column) const { return offset_[column % kAhead]; }

  // To be called after each column: moves `from` along.
  template <typename T>
  void step(int column, const T*& from) const {
    if (column % kAhead != kAhead - 1) return;
    from += kAhead * offset_[1];
    pin_address(from);
  }

 private:
  static constexpr int kAhead = 4;
  int64_t offset_[kAhead];
};

// Results `at`, ..., at + R - 1 of one row; with `Shared` several lanes read the same channel.
template <typename T, bool Shared, bool Streams, int Taps, int Advance, int V, int R>
__attribute__((always_inline)) inline void convolve_tile(const Rows<T>& rows,
                                                         const RowVector<T>* vector, int64_t row,
                                                         int64_t at) {
  using Real = Arithmetic<T>;
  constexpr bool kChains = sizeof(T) == sizeof(Real);
  constexpr int lanes = kLanes<Real>;
  constexpr int kStep = Advance == 0 ? 1 : Advance;  // in columns loaded
  constexpr int kColumns = (R - 1) * kStep + Taps;
  static_assert(Advance != 0 || Taps == 1, "columns are shared where their distance is known");
  const int64_t advance = Advance == 0 ? rows.advance : Advance;
  const ColumnOffsets ahead(rows.column * (Advance == 0 ? advance : 1));
  const int64_t size = result_size(rows), step = rows.step * size;
  const int64_t count = rows.row[row].count;
  const RowTap* tap = rows.taps + rows.row[row].begin;
  const T* first[V];
  IndexVec<Real> index[V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    first[v] = vector[v].from + rows.frame + at * advance * rows.column;
    if (Shared) index[v] = vector[v].index;
  }
  int64_t begin = 0, end;  // of the chain
  do {
    end = kChains ? smaller(begin + rows.chain, count) : count;
    Vec<Real> sum[V][R];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[v][r] = Vec<Real>{};
    }
    for (int64_t i = begin; i < end; ++i, ++tap) {
      const int64_t left = tap->column + at * advance, right = rows.width - left;
      const T* from[V];
      Vec<Real> weight[V][Taps];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        from[v] = first[v] + tap->from;
#pragma GCC unroll 8
        for (int k = 0; k < Taps; ++k) {
          weight[v][k] = load(vector[v].weight + tap->weight + k * lanes);
        }
      }
#pragma GCC unroll 64
      for (int column = 0; column < kColumns; ++column) {
        const bool padding = (column < Taps - 1 && left + column < 0) ||
                             (column > (R - 1) * kStep && column >= right);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          if (!padding) {
            Vec<Real> x = load(from[v] + ahead[column]);
            if (Shared) x = permute(x, index[v]);
            pin(x);
#pragma GCC unroll 8
            for (int k = 0; k < Taps; ++k) {
              const int r = (column - k) / kStep;
              if (column >= k && (column - k) % kStep == 0 && r < R) {
                sum[v][r] = fma(x, weight[v][k], sum[v][r]);
              }
            }
          }
          ahead.step(column, from[v]);
        }
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      char* to = vector[v].to + (rows.first + row * rows.row_step + at * rows.step) * size;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r, to += step) {
        pin_address(to);
        const Real* before =
            kChains && begin > 0 ? reinterpret_cast<const Real*>(to) : vector[v].bias;
        store_result<T, Streams>(to, rows.wide, load(before) + sum[v][r]);
      }
    }
    begin = end;
  } while (kChains && begin < count);
}

// Advance is rows.advance, or 0 for any; V divides rows.vectors, and a row has at least R results.
template <typename T, bool Shared, bool Streams, int Taps, int Advance, int V, int R>
void convolve_rows(const Rows<T>& rows) {
  const int64_t vectors = larger(V, rows.vectors_together);
  for (int64_t begin = 0; begin < rows.vectors; begin += vectors) {
    for (int64_t first = 0; first < rows.rows; first += rows.rows_together) {
      for (int64_t at = 0;;) {
        for (int64_t row = first; row < smaller(first + rows.rows_together, rows.rows); ++row) {
          for (int64_t i = begin; i < smaller(begin + vectors, rows.vectors); i += V) {
            rows.next_from->advance();
            rows.next_to->advance();
            convolve_tile<T, Shared, Streams, Taps, Advance, V, R>(rows, rows.vector + i, row, at);
          }
        }
        if (at + R >= rows.columns) break;
        // The last tile overlaps the one before: tiles are near equal, so by few columns.
        at = smaller(at + R, rows.columns - R);
      }
    }
  }
}

// Tiles of `Columns` results of a row with one tap in each row read: K taps, or if K is 0 any
// number. With `FetchAhead` memory is asked for, where it is walked in its own order.
template <typename T, bool Streams, bool FetchAhead, int Columns, int K>
void convolve_row_along_t(const Rows<T>& rows, int64_t row) {
  using Real = Arithmetic<T>;
  constexpr int64_t kBytesAhead = 6 << 10, kLineVectors = 64 / (kLanes<Real> * sizeof(T));
  // A store reads its line first: 1.05 to 1.2 times as fast. In 16 bits instructions bind (0.97).
  constexpr bool kFetchWritten = FetchAhead && !Streams && sizeof(T) == sizeof(Real);
  // Copies: as far as the compiler knows, what is stored may change `rows` and its vectors.
  const RowTap* const taps = rows.taps + rows.row[row].begin;
  const RowVector<T>* const first = rows.vector;
  const int64_t count = K > 0 ? K : rows.row[row].count, vectors = rows.vectors;
  const int64_t column = rows.advance * rows.column;
  const int64_t size = result_size(rows), step = rows.step * size;
  const int64_t ahead = larger(Columns, kBytesAhead / (column * static_cast<int64_t>(sizeof(T))));
  int64_t few_rows[K > 0 ? K : 1], few_weights[K > 0 ? K : 1];
  int64_t latest = 0;  // the row that no frame before has read
  for (int64_t k = 0; k < count; ++k) {
    const int64_t from = taps[k].from;
    latest = larger(latest, from);
    if (K > 0) few_rows[k] = from, few_weights[k] = taps[k].weight;
  }
  for (int64_t at = 0;;) {
    const int64_t from = rows.frame + at * column;
    const int64_t to = (rows.first + row * rows.row_step + at * rows.step) * size;
    for (int64_t i = 0; i < vectors; ++i) {
      const RowVector<T>& vector = first[i];
      const Real *const weights = vector.weight, *const bias_at = vector.bias;
      const T* const read_at = vector.from + from;
      char* written = vector.to + to;
      if (FetchAhead && i % kLineVectors == 0) {
        const T* const next_from = read_at + latest + ahead * column;
        char* const next_to = written + ahead * step;
#pragma GCC unroll 8
        for (int c = 0; c < Columns; ++c) {
          prefetch(next_from + c * column);
          if (kFetchWritten) prefetch_to_write(next_to + c * step);
        }
      }
      Vec<Real> sum[Columns];
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) sum[c] = Vec<Real>{};
#pragma GCC unroll 8
      for (int64_t k = 0; k < count; ++k) {
        const T* read = read_at + (K > 0 ? few_rows[k] : taps[k].from);
        pin_address(read);
        const Vec<Real> weight = load(weights + (K > 0 ? few_weights[k] : taps[k].weight));
#pragma GCC unroll 8
        for (int c = 0; c < Columns; ++c) sum[c] = fma(load(read + c * column), weight, sum[c]);
      }
      const Vec<Real> bias = load(bias_at);
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c, written += step) {
        store_result<T, Streams>(written, rows.wide, bias + sum[c]);
      }
    }
    if (at + Columns >= rows.columns) break;
    at = smaller(at + Columns, rows.columns - Columns);  // the last tile overlaps
  }
}

// ... with as many taps as the row has, unrolled for at most K.
template <typename T, bool Streams, bool FetchAhead, int Columns, int K = 5>
void find_row_along_t(const Rows<T>& rows, int64_t row) {
  if constexpr (K > 0) {
    const int64_t count = rows.row[row].count;
    if (count < K) return find_row_along_t<T, Streams, FetchAhead, Columns, K - 1>(rows, row);
    if (count == K) return convolve_row_along_t<T, Streams, FetchAhead, Columns, K>(rows, row);
  }
  convolve_row_along_t<T, Streams, FetchAhead, Columns, 0>(rows, row);
}

// Rows of a kernel that goes along T alone, read in place. Columns share the weights only, so few
// are taken at a time and memory is walked nearly in its own order.
template <typename T, bool Streams, bool FetchAhead>
void convolve_along_t(const Rows<T>& rows) {
  constexpr int kColumns = 4;
  for (int64_t row = 0; row < rows.rows; ++row) {
    if (rows.columns < kColumns) {
      find_row_along_t<T, Streams, FetchAhead, 1>(rows, row);
    } else {
      find_row_along_t<T, Streams, FetchAhead, kColumns>(rows, row);
    }
  }
}

// As many results as leave registers for the weights of a run and a column, and for which lanes
// take which channels if those are shared.
constexpr int64_t max_tile(int taps, int vectors, bool shared) {
  return smaller(16, (kRegisters - 1) / vectors - taps - shared);
}

// How rows of `columns` results (at least one) are tiled with `vectors` vectors at once.
struct RowTile {
  RowTile(int64_t columns, int taps, int vectors, bool shared) {
    // Multiply-adds under way at a time, and what the way from tile to tile costs in them.
    constexpr int64_t kUnderWay = VMF_VECTOR_BYTES == 64 ? 4 : 8, kBetween = 2;
    const int64_t most = max_tile(taps, vectors, shared);
    if (most < 1) return;
    tiles = ceil_div(columns, most);
    results = ceil_div(columns, tiles);
    cost = tiles * (larger(results * vectors, kUnderWay) + kBetween) * 2 / vectors;
  }

  int64_t tiles = 0, results = 0;
  int64_t cost = INT64_MAX;  // of a vector, in half multiply-adds for each tap
};

template <typename T, bool Shared, bool Streams, int Taps, int Advance, int V,
          int R = static_cast<int>(max_tile(Taps, V, Shared))>
RowKernel<T> find_tile(int64_t results) {
  if constexpr (R > 0) {
    return results == R ? convolve_rows<T, Shared, Streams, Taps, Advance, V, R>
                        : find_tile<T, Shared, Streams, Taps, Advance, V, R - 1>(results);
  } else {
    return nullptr;
  }
}

// The kernel that takes `taps` taps and V vectors at once.
template <typename T, int V, bool Streams>
RowKernel<T> find_row_kernel(int taps, int64_t advance, const RowTile& tile, bool shared) {
  return with_tap_run(taps, advance, [&](auto run) {
    constexpr int kAdvance = run.kTaps == 1 ? 0 : run.kStep;
    if constexpr (kSpreads<Arithmetic<T>>) {
      if (shared) return find_tile<T, true, Streams, run.kTaps, kAdvance, V>(tile.results);
    }
    return find_tile<T, false, Streams, run.kTaps, kAdvance, V>(tile.results);
  });
}

// How the rows of one phase are convolved: vectors by twos where that is faster. With `shared`
// several lanes read the same channel, with `streams` results are stored around the caches.
template <typename T>
struct RowKernels {
  RowKernels() = default;
  RowKernels(int taps, int64_t advance, int64_t columns, bool shared, bool streams,
             bool fetch_ahead) {
    const RowTile single(columns, taps, 1, shared), pair(columns, taps, 2, shared);
    const auto find = [&](auto around) {
      constexpr bool kAround = decltype(around)::value;
      one = find_row_kernel<T, 1, kAround>(taps, advance, single, shared);
      if (pair.cost < single.cost) {
        two = find_row_kernel<T, 2, kAround>(taps, advance, pair, shared);
      }
      along_t =
          fetch_ahead ? convolve_along_t<T, kAround, true> : convolve_along_t<T, kAround, false>;
    };
    find(std::false_type());
    if constexpr (kStreams<T>) {
      if (streams) find(std::true_type());
    }
    tiles = two == nullptr ? 2 * single.tiles : pair.tiles;
  }

  void run(Rows<T> rows) const {
    const int64_t vectors = rows.vectors;
    if (two != nullptr && vectors > 1) {
      rows.vectors = vectors / 2 * 2;
      two(rows);
      rows.vector += rows.vectors;
      rows.vectors = vectors % 2;
    }
    if (rows.vectors > 0) one(rows);
  }

  RowKernel<T> one = nullptr, two = nullptr;
  RowKernel<T> along_t = nullptr;  // of a kernel that goes along T alone
  int64_t tiles = 0;               // of two vectors, about
};

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
