// The loops of the operator for one CPU capability: compiled once for each, with -DCAPABILITY=<name>,
// -DVECTOR_BYTES=<width> and -DMAX_VECTORS=<vectors of a tile>. Everything in here is local to the capability.
#include "kernels.h"

#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#if VECTOR_BYTES > 16
#include <immintrin.h>
#endif

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE inline __attribute__((always_inline))

namespace drconv {
namespace CAPABILITY {
namespace {

// --- Vectors ---------------------------------------------------------------------------------------------------------

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(VECTOR_BYTES)));
  typedef T unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  static constexpr int lanes = VECTOR_BYTES / sizeof(T);
};
template <typename T>
using Vec = typename Vector<T>::type;

template <typename T>
INLINE Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename Vector<T>::unaligned*>(from);
}

template <typename T>
INLINE void store(T* to, Vec<T> value) {
  *reinterpret_cast<typename Vector<T>::unaligned*>(to) = value;
}

#if VECTOR_BYTES == 64
INLINE Vec<float> load_some(const float* from, int64_t count) {
  return (Vec<float>)_mm512_maskz_loadu_ps((1u << count) - 1, from);
}
INLINE Vec<double> load_some(const double* from, int64_t count) {
  return (Vec<double>)_mm512_maskz_loadu_pd((1u << count) - 1, from);
}
INLINE void store_some(float* to, Vec<float> value, int64_t count) {
  _mm512_mask_storeu_ps(to, (1u << count) - 1, (__m512)value);
}
INLINE void store_some(double* to, Vec<double> value, int64_t count) {
  _mm512_mask_storeu_pd(to, (1u << count) - 1, (__m512d)value);
}
#elif VECTOR_BYTES == 32
alignas(64) const int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
INLINE __m256i mask_of(int64_t words) { return _mm256_loadu_si256((const __m256i*)(kMask + 8 - words)); }
INLINE Vec<float> load_some(const float* from, int64_t count) {
  return (Vec<float>)_mm256_maskload_ps(from, mask_of(count));
}
INLINE Vec<double> load_some(const double* from, int64_t count) {
  return (Vec<double>)_mm256_maskload_pd(from, mask_of(2 * count));
}
INLINE void store_some(float* to, Vec<float> value, int64_t count) {
  _mm256_maskstore_ps(to, mask_of(count), (__m256)value);
}
INLINE void store_some(double* to, Vec<double> value, int64_t count) {
  _mm256_maskstore_pd(to, mask_of(2 * count), (__m256d)value);
}
#else
template <typename T>
INLINE Vec<T> load_some(const T* from, int64_t count) {
  Vec<T> value = {};
  std::memcpy(&value, from, count * sizeof(T));
  return value;
}
template <typename T>
INLINE void store_some(T* to, Vec<T> value, int64_t count) {
  std::memcpy(to, &value, count * sizeof(T));
}
#endif

// `count` lanes, all of them or fewer.
template <typename T>
INLINE Vec<T> load_up_to(const T* from, int64_t count) {
  return count >= Vector<T>::lanes ? load(from) : load_some(from, count);
}

template <typename T>
INLINE void store_up_to(T* to, Vec<T> value, int64_t count) {
  if (count >= Vector<T>::lanes) store(to, value);
  else store_some(to, value, count);
}

template <typename T>
INLINE T sum(Vec<T> value) {
  T total = 0;
  UNROLL for (int i = 0; i < Vector<T>::lanes; ++i) total += value[i];
  return total;
}

// --- Small tools -----------------------------------------------------------------------------------------------------

INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Memory of a thread that grows and stays: the loops ask for it anew at each call.
class Scratch {
 public:
  ~Scratch() { release(); }
  template <typename T>
  T* get(int64_t count) {
    const int64_t bytes = count * int64_t(sizeof(T)) + 64;
    if (bytes > size_) {
      release();
      memory_ = ::operator new(bytes, std::align_val_t(64));
      size_ = bytes;
    }
    return static_cast<T*>(memory_);
  }

 private:
  void release() {
    if (memory_) ::operator delete(memory_, std::align_val_t(64));
    memory_ = nullptr;
    size_ = 0;
  }
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

// The first index in [begin, end) whose value is at least `value`.
int64_t lower_bound(const int32_t* values, int64_t begin, int64_t end, int64_t value) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (values[middle] < value) begin = middle + 1;
    else end = middle;
  }
  return begin;
}

// The columns of a product, cut into panels of up to MAX_VECTORS vectors, as even as they come.
template <typename T>
struct Panels {
  explicit Panels(int64_t columns)
      : columns(columns), vectors(divide_up(columns, Vector<T>::lanes)), count(divide_up(vectors, MAX_VECTORS)) {}
  int64_t first_vector(int64_t panel) const { return vectors * panel / count; }
  int64_t first(int64_t panel) const { return first_vector(panel) * Vector<T>::lanes; }
  int64_t width(int64_t panel) const { return int(first_vector(panel + 1) - first_vector(panel)); }
  int64_t padded() const { return vectors * Vector<T>::lanes; }
  int64_t columns, vectors, count;
};

// Rows of a tile with V vectors: what fits into the registers beside a row of the other factor.
constexpr int tile_rows(int vectors) {
#if VECTOR_BYTES == 64
  return vectors == 4 ? 6 : vectors == 3 ? 8 : 10;
#else
  return vectors == 3 ? 4 : vectors == 2 ? 6 : 8;
#endif
}

// Positions that are worked on at a time: a multiple of every tile's rows, with pointers that stay in the L1 cache.
constexpr int64_t kBlock = 120;
constexpr int64_t kBeyond = 24;  // a last tile may reach beyond, and fetches the rows of one more
constexpr int64_t kBlockRoom = kBlock + kBeyond;

// --- Where the window of an output position lies in the input --------------------------------------------------------

template <typename T>
struct Windows {
  Windows(const Problem& p, const T* input, const T* zeros)
      : p(p), input(input), zeros(zeros),
        plain(p.taps() == 1 && p.stride[0] == 1 && p.stride[1] == 1 && p.padding[0] == 0 && p.padding[1] == 0) {}

  // rows[tap * kBlockRoom + i] = the pixel under each tap of up to kBlock positions, or `zeros` beyond the border. Behind
  // the last one stands its repetition, as tiles reach beyond.
  void find(const int32_t* positions, int64_t count, const T** rows) const {
    for (int64_t i = 0; i < count; ++i) {
      if (plain) {
        rows[i] = input + int64_t(positions[i]) * p.channels;
        continue;
      }
      const uint32_t per_image = uint32_t(p.positions()), wide = uint32_t(p.out_width);
      const uint32_t image = uint32_t(positions[i]) / per_image, rest = uint32_t(positions[i]) % per_image;
      const int64_t top = int64_t(rest / wide) * p.stride[0] - p.padding[0];
      const int64_t left = int64_t(rest % wide) * p.stride[1] - p.padding[1];
      const T* base = input + int64_t(image) * p.height * p.width * p.channels;
      int64_t tap = 0;
      for (int64_t u = 0; u < p.kernel[0]; ++u) {
        const int64_t y = top + u * p.dilation[0];
        for (int64_t v = 0; v < p.kernel[1]; ++v, ++tap) {
          const int64_t x = left + v * p.dilation[1];
          const bool inside = uint64_t(y) < uint64_t(p.height) && uint64_t(x) < uint64_t(p.width);
          rows[tap * kBlockRoom + i] = inside ? base + (y * p.width + x) * p.channels : zeros;
        }
      }
    }
    const int64_t taps = p.taps(), room = min(count + kBeyond, kBlockRoom);
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t i = count; i < room; ++i) rows[tap * kBlockRoom + i] = rows[tap * kBlockRoom + count - 1];
  }

  const Problem& p;
  const T* input;
  const T* zeros;
  const bool plain;
};

template <typename T>
const T* zero_row(Scratch& scratch, int64_t count) {
  T* zeros = scratch.get<T>(count);
  std::memset(zeros, 0, count * sizeof(T));
  return zeros;
}

// --- Filters in the order in which the products read them ------------------------------------------------------------

template <typename T>
const T* bank_of(const Problem& p, const T* filters, int64_t bank) {
  return p.shared ? filters + bank * p.filter_stride[1]
                    : filters + bank / p.regions * p.filter_stride[0] + bank % p.regions * p.filter_stride[1];
}

// The lanes of two vectors that Index names, the second's after the first's.
template <typename T, int... Index>
INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Index...);
#else  // its older releases have no __builtin_shufflevector
  typedef typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type Lane;
  typedef Lane Lanes __attribute__((vector_size(VECTOR_BYTES)));
  return __builtin_shuffle(a, b, Lanes{Index...});
#endif
}

// Exchanges the off-diagonal halves of each block of 2 step x 2 step numbers, and goes on inside the halves.
template <typename T, int step, int... Lane>
INLINE void transpose_blocks(Vec<T> (&rows)[sizeof...(Lane)], std::integer_sequence<int, Lane...> lanes) {
  constexpr int count = sizeof...(Lane);
  UNROLL for (int i = 0; i < count; ++i) {
    if (i & step) continue;
    const Vec<T> a = rows[i], b = rows[i + step];
    rows[i] = shuffle<T, (Lane & step ? count + Lane - step : Lane)...>(a, b);
    rows[i + step] = shuffle<T, (Lane & step ? count + Lane : Lane + step)...>(a, b);
  }
  if constexpr (step > 1) transpose_blocks<T, step / 2>(rows, lanes);
}

// Transposes a block of lanes x lanes numbers in registers.
template <typename T>
INLINE void transpose(Vec<T> (&rows)[Vector<T>::lanes]) {
  transpose_blocks<T, Vector<T>::lanes / 2>(rows, std::make_integer_sequence<int, Vector<T>::lanes>());
}

// to[k * to_row + j] = from[j * row_stride + k * column_stride] for j < columns, and 0 for j up to `padded`; k < depth.
template <typename T>
void pack(const T* from, int64_t row_stride, int64_t column_stride, int64_t columns, int64_t depth, int64_t padded,
          T* to, int64_t to_row) {
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t j = 0; j < padded; j += lanes) {
    const int64_t there = max(0, min(lanes, columns - j)), room = min(lanes, padded - j);
    int64_t k = 0;
    if (row_stride == 1) {
      for (; k < depth; ++k)
        store_up_to(to + k * to_row + j, load_up_to(from + j + k * column_stride, there), room);
    } else if (column_stride == 1) {
      for (; k < depth; k += lanes) {
        const int64_t deep = min(lanes, depth - k);
        Vec<T> rows[lanes];
        UNROLL for (int i = 0; i < lanes; ++i)
          rows[i] = i < there ? load_up_to(from + (j + i) * row_stride + k, deep) : Vec<T>{};
        transpose<T>(rows);
        UNROLL for (int i = 0; i < lanes; ++i)
          if (i < deep) store_up_to(to + (k + i) * to_row + j, rows[i], room);
      }
    }
    for (; k < depth; ++k)
      for (int64_t i = 0; i < room; ++i)
        to[k * to_row + j + i] = i < there ? from[(j + i) * row_stride + k * column_stride] : T(0);
  }
}

template <typename T>
void transpose_rows(const T* from, int64_t from_row, int64_t rows, int64_t columns, T* to, int64_t to_row) {
  pack(from, from_row, 1, rows, columns, rows, to, to_row);
}

// One bank's filters with the output channels side by side: a copy cut into panels, or where they lie.
template <typename T>
struct Bank {
  const T* base;
  int64_t group_step, column_step;  // to the next group, and to the next output channel of a panel's first
  int64_t tap_step, row;            // per vector of a panel where it is a copy
  bool copy;

  const T* panel(int64_t group, int64_t first) const { return base + group * group_step + first * column_step; }
  int64_t tap_of(int64_t width) const { return copy ? tap_step * width : tap_step; }
  int64_t row_of(int64_t width) const { return copy ? width : row; }
};

// Whether filters can be read where they are: rows of output channels, the taps at one distance.
inline bool in_place(const Problem& p) {
  const int64_t* stride = p.filter_stride;
  return stride[2] == 1 && (p.kernel[0] == 1 || stride[4] == p.kernel[1] * stride[5]);
}

template <typename T>
Bank<T> where_it_lies(const Problem& p, const T* filter) {
  return {filter, p.group_outputs(), 1, p.filter_stride[5], p.filter_stride[3], false};
}

template <typename T>
Bank<T> copied(const Problem& p, const T* filter, const Panels<T>& panels, T* to) {
  const int64_t taps = p.taps(), depth = p.group_channels(), *stride = p.filter_stride, lanes = Vector<T>::lanes;
  const Bank<T> bank{to, panels.padded() * taps * depth, taps * depth, depth, 0, true};
  for (int64_t group = 0; group < p.groups; ++group)
    for (int64_t panel = 0; panel < panels.count; ++panel) {
      const int64_t width = panels.width(panel) * lanes, first = panels.first(panel);
      T* at = to + group * bank.group_step + first * bank.column_step;
      const T* from = filter + (group * p.group_outputs() + first) * stride[2];
      for (int64_t tap = 0; tap < taps; ++tap)
        pack(from + tap / p.kernel[1] * stride[4] + tap % p.kernel[1] * stride[5], stride[2], stride[3],
             p.group_outputs() - first, depth, width, at + tap * depth * width, width);
    }
  return bank;
}

// --- Tiles -----------------------------------------------------------------------------------------------------------

// Rows that memory is asked for ahead: they are reached by pointers, which the processor does not foresee.
constexpr int64_t kAhead = 12;

template <typename T, int V>
INLINE void fetch(const T* row, bool write) {
  constexpr int64_t line = 64 / sizeof(T), numbers = V * Vector<T>::lanes;
  UNROLL for (int64_t c = 0; c < numbers; c += line) {
    if (write) __builtin_prefetch(row + c, 1);
    else __builtin_prefetch(row + c, 0);
  }
}

template <typename T>
INLINE void fetch_row(const T* row, int64_t numbers) {
  for (int64_t c = 0; c < numbers; c += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + c);
}

// tile[i][v] += sum over k of a[i][k] * b[k][v], and the rows of the next tile are fetched meanwhile.
template <typename T, int M, int V, bool Partial>
INLINE void multiply(const T* const* rows, int64_t offset, const T* b, int64_t b_row, int64_t depth, int64_t last,
                     Vec<T> (&tile)[M][V]) {
  constexpr int lanes = Vector<T>::lanes;
  constexpr int64_t line = 64 / sizeof(T);
  const T* a[M];
  UNROLL for (int i = 0; i < M; ++i) a[i] = rows[i] + offset;
  for (int64_t start = 0; start < depth; start += line) {
    UNROLL for (int i = 0; i < M; ++i) __builtin_prefetch(rows[M + i] + offset + start);
    const int64_t stop = min(depth, start + line);
    for (int64_t k = start; k < stop; ++k, b += b_row) {
      Vec<T> columns[V];
      UNROLL for (int v = 0; v < V - 1; ++v) columns[v] = load(b + v * lanes);
      columns[V - 1] = Partial ? load_some(b + (V - 1) * lanes, last) : load(b + (V - 1) * lanes);
      UNROLL for (int i = 0; i < M; ++i) {
        const Vec<T> number = a[i][k] - Vec<T>{};
        UNROLL for (int v = 0; v < V; ++v) tile[i][v] += number * columns[v];
      }
    }
  }
}

// Rows, given by pointers, times a panel of a matrix.
template <typename T>
struct Product {
  const T* const* rows;  // [taps][kBlockRoom]
  int64_t taps, offset, depth;
  const T* b;
  int64_t b_tap, b_row;
  int64_t begin, end;    // of the rows
  int64_t columns;
  bool padded;           // whether the panel's last vector can be read whole
};

template <typename T, int V, int M, bool Partial, typename Finish>
INLINE void product_tile(const Product<T>& f, int64_t i, int64_t valid, const Finish& finish) {
  Vec<T> tile[M][V] = {};
  const int64_t last = f.columns - (V - 1) * Vector<T>::lanes;
  for (int64_t tap = 0; tap < f.taps; ++tap)
    multiply<T, M, V, Partial>(f.rows + tap * kBlockRoom + i, f.offset, f.b + tap * f.b_tap, f.b_row, f.depth, last,
                               tile);
  UNROLL for (int row = 0; row < M; ++row) {
    if (row >= valid) break;
    finish(i + row, tile[row], last);
  }
}

template <typename T, int V, bool Partial, typename Finish>
void product_panel(const Product<T>& f, const Finish& finish) {
  constexpr int M = tile_rows(V), half = M / 2;
  for (int64_t i = f.begin; i < f.end;) {
    const int64_t left = f.end - i;
    if (left <= half) {
      product_tile<T, V, half, Partial>(f, i, left, finish);
      i += half;
    } else {
      product_tile<T, V, M, Partial>(f, i, left, finish);
      i += M;
    }
  }
}

// finish(i, values, last) gets each row of the product: V vectors, `last` numbers of the last one.
template <typename T, typename Finish>
void product(const Product<T>& f, const Finish& finish) {
  const int64_t vectors = divide_up(f.columns, Vector<T>::lanes);
  const bool partial = !f.padded && f.columns % Vector<T>::lanes;
#define DRCONV_PANEL(V)                                               \
  case V:                                                             \
    if (partial) product_panel<T, V, true>(f, finish);                \
    else product_panel<T, V, false>(f, finish);                       \
    break;
  switch (vectors) {
    DRCONV_PANEL(1)
    DRCONV_PANEL(2)
    DRCONV_PANEL(3)
#if MAX_VECTORS > 3
    DRCONV_PANEL(4)
#endif
  }
#undef DRCONV_PANEL
}

// --- Forward ---------------------------------------------------------------------------------------------------------

template <typename T>
struct StoreOutput {
  T* const* to;
  int64_t channel;
  template <int V>
  INLINE void operator()(int64_t i, const Vec<T> (&values)[V], int64_t last) const {
    constexpr int lanes = Vector<T>::lanes;
    fetch<T, V>(to[i + kAhead] + channel, true);
    T* at = to[i] + channel;
    UNROLL for (int v = 0; v < V - 1; ++v) store(at + v * lanes, values[v]);
    store_up_to(at + (V - 1) * lanes, values[V - 1], last);
  }
};

// Filters are copied where each panel is read often; a single panel lies together anyway.
inline bool worth_a_copy(const Problem& p, int64_t panels, int64_t positions) {
  return !in_place(p) || (panels > 1 && positions > 2 * kBlock);
}

template <typename T>
void forward(const Problem& p, const Order& order, const T* input, const T* filters, T* output, int64_t begin,
             int64_t end) {
  static thread_local Scratch packed_memory, rows_memory, zeros_memory;
  if (begin >= end) return;
  const Panels<T> panels(p.group_outputs());
  const int64_t depth = p.group_channels(), taps = p.taps(), lanes = Vector<T>::lanes;
  const Windows<T> windows(p, input, zero_row<T>(zeros_memory, p.channels));
  const T** rows = rows_memory.get<const T*>(taps * kBlockRoom);
  T* to[kBlockRoom];
  int64_t bank = 0;
  while (order.offsets[bank + 1] <= begin) ++bank;
  for (int64_t at = begin; at < end; ++bank) {
    const int64_t stop = min(end, order.offsets[bank + 1]);
    if (at >= stop) continue;
    const T* filter = bank_of(p, filters, bank);
    const Bank<T> banked = worth_a_copy(p, panels.count * p.groups, stop - at)
        ? copied(p, filter, panels, packed_memory.get<T>(p.groups * panels.padded() * taps * depth))
        : where_it_lies(p, filter);
    for (; at < stop; at += kBlock) {
      const int64_t count = min(kBlock, stop - at);
      windows.find(order.positions + at, count, rows);
      for (int64_t i = 0; i < kBlockRoom; ++i)
        to[i] = output + int64_t(order.positions[at + min(i, count - 1)]) * p.out_channels;
      for (int64_t group = 0; group < p.groups; ++group)
        for (int64_t panel = 0; panel < panels.count; ++panel) {
          const int64_t width = panels.width(panel) * lanes, first = panels.first(panel);
          const StoreOutput<T> finish{to, group * p.group_outputs() + first};
          product<T>({rows, taps, group * depth, depth, banked.panel(group, first), banked.tap_of(width),
                      banked.row_of(width), 0, count, min(width, p.group_outputs() - first), banked.copy},
                     finish);
        }
    }
    at = stop;
  }
}

// --- The guide's response and grad_input -----------------------------------------------------------------------------

// Positions [from, until) of one image, those of a bank together.
struct Strip {
  Strip(const Problem& p, const Order& order, int64_t image, int64_t first_row, int64_t last_row, Scratch& list,
        Scratch& starts)
      : positions(list.get<int32_t>((last_row - first_row) * p.out_width)), starts(starts.get<int64_t>(p.regions + 1)) {
    const int64_t from = image * p.positions() + first_row * p.out_width;
    const int64_t until = image * p.positions() + last_row * p.out_width;
    count = 0;
    for (int64_t j = 0; j < p.regions; ++j) {
      const int64_t bank = p.bank(image, j), first = order.offsets[bank], last = order.offsets[bank + 1];
      const int64_t begin = lower_bound(order.positions, first, last, from);
      const int64_t end = lower_bound(order.positions, begin, last, until);
      this->starts[j] = count;
      std::memcpy(positions + count, order.positions + begin, (end - begin) * sizeof(int32_t));
      count += end - begin;
    }
    this->starts[p.regions] = count;
  }
  int32_t* positions;
  int64_t* starts;
  int64_t count;
};

template <typename T>
struct AddInnerProduct {
  const T* const* grads;
  int64_t channel;
  Vec<T>* sums;
  template <int V>
  INLINE void operator()(int64_t i, const Vec<T> (&values)[V], int64_t last) const {
    constexpr int lanes = Vector<T>::lanes;
    fetch<T, V>(grads[i + kAhead] + channel, false);
    const T* grad = grads[i] + channel;
    Vec<T> total = values[V - 1] * load_up_to(grad + (V - 1) * lanes, last);
    UNROLL for (int v = 0; v < V - 1; ++v) total += values[v] * load(grad + v * lanes);
    sums[i] += total;
  }
};

// Bytes of filters that are gone through for one block of positions: they stay in the caches from one to the next.
constexpr int64_t kBanksBytes = int64_t(4) << 20;

template <typename T>
void responses(const Problem& p, const Order& order, bool others, const T* input, const T* filters,
               const T* grad_output, const Response<T>& response, int64_t image, int64_t first_row, int64_t last_row) {
  static thread_local Scratch packed_memory, rows_memory, zeros_memory, list_memory, starts_memory, grads_memory,
      banks_memory;
  const Strip strip(p, order, image, first_row, last_row, list_memory, starts_memory);
  const int64_t lanes = Vector<T>::lanes, taps = p.taps(), depth = p.group_channels();
  const Panels<T> panels(p.group_outputs());
  const Windows<T> windows(p, input, zero_row<T>(zeros_memory, p.channels));
  const T** rows = rows_memory.get<const T*>(taps * kBlockRoom);
  const T** grads = grads_memory.get<const T*>(kBlockRoom);
  Bank<T>* banks = banks_memory.get<Bank<T>>(p.regions);
  const bool copy = worth_a_copy(p, panels.count * p.groups, others ? strip.count : strip.count / p.regions);
  const int64_t numbers = p.groups * panels.padded() * taps * depth;
  const int64_t together = max(1, min(p.regions, kBanksBytes / int64_t(numbers * sizeof(T))));
  Vec<T> sums[kBlock];
  for (int64_t first_bank = 0; first_bank < p.regions; first_bank += together) {
    const int64_t last_bank = min(p.regions, first_bank + together);
    T* packed = copy ? packed_memory.get<T>(together * numbers) : nullptr;
    for (int64_t j = first_bank; j < last_bank; ++j) {
      const T* filter = bank_of(p, filters, p.bank(image, j));
      banks[j] = copy ? copied(p, filter, panels, packed + (j - first_bank) * numbers) : where_it_lies(p, filter);
    }
    for (int64_t at = 0; at < strip.count; at += kBlock) {
      const int64_t count = min(kBlock, strip.count - at);
      const int32_t* positions = strip.positions + at;
      bool found = false;
      for (int64_t j = first_bank; j < last_bank; ++j) {
        // Where the block has positions of bank j: what is asked for, or what is left out.
        const int64_t low = max(0, min(count, strip.starts[j] - at));
        const int64_t high = max(0, min(count, strip.starts[j + 1] - at));
        const int64_t ranges[2][2] = {{others ? 0 : low, others ? low : high}, {others ? high : count, count}};
        for (const auto& range : ranges) {
          if (range[0] >= range[1]) continue;
          if (!found) {
            windows.find(positions, count, rows);
            for (int64_t i = 0; i < kBlockRoom; ++i)
              grads[i] = grad_output + int64_t(positions[min(i, count - 1)]) * p.out_channels;
            found = true;
          }
          for (int64_t i = range[0]; i < range[1]; ++i) sums[i] = Vec<T>{};
          for (int64_t group = 0; group < p.groups; ++group)
            for (int64_t panel = 0; panel < panels.count; ++panel) {
              const int64_t width = panels.width(panel) * lanes, first = panels.first(panel);
              const AddInnerProduct<T> finish{grads, group * p.group_outputs() + first, sums};
              product<T>({rows, taps, group * depth, depth, banks[j].panel(group, first), banks[j].tap_of(width),
                          banks[j].row_of(width), range[0], range[1], min(width, p.group_outputs() - first), copy},
                         finish);
            }
          for (int64_t i = range[0]; i < range[1]; ++i)
            *response.at(image, others ? j : response.rank, positions[i] - image * p.positions()) = sum<T>(sums[i]);
        }
      }
    }
  }
}

template <typename T>
struct AddToInput {
  const T* const* pixels;  // under one tap
  int64_t channel;
  Vec<T>* sums;            // or null
  T* const* to;            // where grad_input's pixels are, null beyond the border; or null
  template <int V>
  INLINE void operator()(int64_t i, const Vec<T> (&values)[V], int64_t last) const {
    constexpr int lanes = Vector<T>::lanes;
    const int64_t tail = (V - 1) * lanes;
    if (sums) {
      fetch<T, V>(pixels[i + kAhead] + channel, false);
      const T* pixel = pixels[i] + channel;
      Vec<T> total = values[V - 1] * load_up_to(pixel + tail, last);
      UNROLL for (int v = 0; v < V - 1; ++v) total += values[v] * load(pixel + v * lanes);
      sums[i] += total;
    }
    if (to && to[i]) {
      fetch<T, V>(to[i + kAhead] + channel, true);
      T* at = to[i] + channel;
      UNROLL for (int v = 0; v < V - 1; ++v) store(at + v * lanes, load(at + v * lanes) + values[v]);
      store_up_to(at + tail, load_up_to(at + tail, last) + values[V - 1], last);
    }
  }
};

template <typename T>
void transposed(const Problem& p, const Order& order, const T* input, const T* filters, const T* grad_output,
                T* grad_input, int64_t input_row, const Response<T>* response, int64_t image, int64_t first_row,
                int64_t last_row) {
  static thread_local Scratch packed_memory, rows_memory, zeros_memory, list_memory, starts_memory, to_memory,
      grads_memory;
  const Strip strip(p, order, image, first_row, last_row, list_memory, starts_memory);
  const int64_t lanes = Vector<T>::lanes, taps = p.taps(), depth = p.group_outputs(), *stride = p.filter_stride;
  const Panels<T> panels(p.group_channels());
  const T* zeros = zero_row<T>(zeros_memory, p.channels);
  const Windows<T> windows(p, input, zeros);
  const T** rows = rows_memory.get<const T*>(taps * kBlockRoom);
  T** to = to_memory.get<T*>(taps * kBlockRoom);
  const T** grads = grads_memory.get<const T*>(kBlockRoom);
  const T* image_input = input + (image * p.height + input_row) * p.width * p.channels;
  const int64_t per_group = panels.padded() * taps * depth;
  Vec<T> sums[kBlock];
  for (int64_t j = 0; j < p.regions; ++j) {
    if (strip.starts[j] == strip.starts[j + 1]) continue;
    T* packed = packed_memory.get<T>(p.groups * per_group);
    const T* filter = bank_of(p, filters, p.bank(image, j));
    for (int64_t group = 0; group < p.groups; ++group)
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t panel = 0; panel < panels.count; ++panel) {
          const int64_t first = panels.first(panel), width = panels.width(panel) * lanes;
          pack(filter + group * depth * stride[2] + first * stride[3] + tap / p.kernel[1] * stride[4] +
                   tap % p.kernel[1] * stride[5],
               stride[3], stride[2], p.group_channels() - first, depth, width,
               packed + group * per_group + (tap * panels.padded() + first) * depth, width);
        }
    for (int64_t at = strip.starts[j]; at < strip.starts[j + 1]; at += kBlock) {
      const int64_t count = min(kBlock, strip.starts[j + 1] - at);
      const int32_t* positions = strip.positions + at;
      windows.find(positions, count, rows);
      for (int64_t i = 0; i < kBlockRoom; ++i)
        grads[i] = grad_output + int64_t(positions[min(i, count - 1)]) * p.out_channels;
      for (int64_t i = 0; i < count; ++i) sums[i] = Vec<T>{};
      if (grad_input)
        for (int64_t tap = 0; tap < taps; ++tap)
          for (int64_t i = 0; i < min(count + kBeyond, kBlockRoom); ++i) {
            const T* row = rows[tap * kBlockRoom + i];
            to[tap * kBlockRoom + i] = row == zeros ? nullptr : grad_input + (row - image_input);
          }
      for (int64_t group = 0; group < p.groups; ++group)
        for (int64_t tap = 0; tap < taps; ++tap)
          for (int64_t panel = 0; panel < panels.count; ++panel) {
            const int64_t first = panels.first(panel), width = panels.width(panel) * lanes;
            const AddToInput<T> finish{rows + tap * kBlockRoom, group * p.group_channels() + first,
                                       response ? sums : nullptr, grad_input ? to + tap * kBlockRoom : nullptr};
            product<T>({grads, 1, group * depth, depth,
                        packed + group * per_group + (tap * panels.padded() + first) * depth, 0, width, 0, count,
                        min(width, p.group_channels() - first), true},
                       finish);
          }
      if (response)
        for (int64_t i = 0; i < count; ++i)
          *response->at(image, response->rank < 0 ? j : response->rank, positions[i] - image * p.positions()) =
              sum<T>(sums[i]);
    }
  }
}

// --- The filters' gradient -------------------------------------------------------------------------------------------

// to[tile][n][M] = rows[n][first + tile * M ...] for the numbers up to `last`, and what is there or zeros beyond.
template <typename T>
void copy_broadcast(const T* const* rows, int64_t count, int64_t first, int64_t last, int64_t height, T* to,
                    int64_t tile_step) {
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t n = 0; n < count; ++n) {
    fetch_row(rows[n + kAhead] + first, last - first);
    const T* from = rows[n];
    T* at = to + n * height;
    // Each store reaches into the next position's numbers, which are stored afterwards.
    for (int64_t c = first; c < last; c += height, at += tile_step)
      for (int64_t q = 0; q < height; q += lanes) store(at + q, load_up_to(from + c + q, max(0, last - c - q)));
  }
}

// to[n][j] = rows[n][first + j], zeros from `columns` up to `padded`.
template <typename T>
void copy_vectors(const T* const* rows, int64_t count, int64_t first, int64_t columns, int64_t padded, T* to) {
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t n = 0; n < count; ++n) {
    fetch_row(rows[n + kAhead] + first, columns);
    for (int64_t j = 0; j < padded; j += lanes) store(to + n * padded + j, load_up_to(rows[n] + first + j, columns - j));
  }
}

template <typename T>
struct GradientTile {
  const T* broadcast;  // [count][M]
  const T* vectors;    // [count][vectors_row]
  int64_t vectors_row, count;
  int64_t rows, columns;
  T* to;
  int64_t to_row, to_column;
  bool add;  // to what is there
};

template <typename T, int V, int M>
void gradient_tile(const GradientTile<T>& f) {
  constexpr int lanes = Vector<T>::lanes;
  Vec<T> tile[M][V] = {};
  const T *a = f.broadcast, *b = f.vectors;
  for (int64_t n = 0; n < f.count; ++n, a += M, b += f.vectors_row) {
    Vec<T> columns[V];
    UNROLL for (int v = 0; v < V; ++v) columns[v] = load(b + v * lanes);
    UNROLL for (int i = 0; i < M; ++i) {
      const Vec<T> number = a[i] - Vec<T>{};
      UNROLL for (int v = 0; v < V; ++v) tile[i][v] += number * columns[v];
    }
  }
  const int64_t last = f.columns - (V - 1) * lanes;
  UNROLL for (int i = 0; i < M; ++i) {
    if (i >= f.rows) break;
    T* to = f.to + i * f.to_row;
    if (f.to_column == 1) {
      if (f.add) {
        UNROLL for (int v = 0; v < V - 1; ++v) tile[i][v] += load(to + v * lanes);
        tile[i][V - 1] += load_up_to(to + (V - 1) * lanes, last);
      }
      UNROLL for (int v = 0; v < V - 1; ++v) store(to + v * lanes, tile[i][v]);
      store_up_to(to + (V - 1) * lanes, tile[i][V - 1], last);
    } else {
      for (int64_t c = 0; c < f.columns; ++c) {
        T* at = to + c * f.to_column;
        *at = tile[i][c / lanes][c % lanes] + (f.add ? *at : T(0));
      }
    }
  }
}

// A panel of V vectors where the widest one has `widest`: that one's height is the height of all.
template <typename T, int V>
void gradient_panel(const GradientTile<T>& f, int64_t widest) {
  if (widest == V) gradient_tile<T, V, tile_rows(V)>(f);
  else gradient_tile<T, V, tile_rows(V + 1)>(f);
}

template <typename T>
void filter_gradient(const Problem& p, const Order& order, const T* input, const T* grad_output, T* grad_filters,
                     int64_t bank, int64_t group, Share share) {
  static thread_local Scratch rows_memory, zeros_memory, broadcast_memory, vectors_memory;
  const int64_t lanes = Vector<T>::lanes, taps = p.taps(), *stride = p.filter_stride;
  // The vectors run along what lies side by side in the result.
  const bool along_outputs = stride[2] == 1;
  const int64_t wide = along_outputs ? p.group_outputs() : p.group_channels();
  const int64_t tall = along_outputs ? p.group_channels() : p.group_outputs();
  const int64_t begin = tall * share.index / share.count, end = tall * (share.index + 1) / share.count;
  const Panels<T> panels(wide);
  const int64_t widest = divide_up(panels.vectors, panels.count), height = tile_rows(int(widest));
  const int64_t tile_step = height * kBlock + 2 * lanes, tiles = divide_up(end - begin, height);
  const Windows<T> windows(p, input, zero_row<T>(zeros_memory, p.channels));
  const T** rows = rows_memory.get<const T*>(taps * kBlockRoom);
  T* broadcast = broadcast_memory.get<T>(tiles * tile_step);
  T* vectors = vectors_memory.get<T>(kBlock * panels.padded());
  const T* grads[kBlockRoom];
  T* bank_to = const_cast<T*>(bank_of<T>(p, grad_filters, bank));
  const int64_t stop = order.offsets[bank + 1];
  int64_t at = order.offsets[bank];
  bool add = false;
  do {  // once at least, for the zeros of a bank without positions
    const int64_t count = min(kBlock, stop - at);
    if (count) {
      windows.find(order.positions + at, count, rows);
      for (int64_t i = 0; i < kBlockRoom; ++i)
        grads[i] = grad_output + int64_t(order.positions[at + min(i, count - 1)]) * p.out_channels;
    }
    for (int64_t tap = 0; tap < taps; ++tap) {
      const T* const* pixels = rows + tap * kBlockRoom;
      if (along_outputs || tap == 0)
        copy_broadcast(along_outputs ? pixels : grads, count, group * tall + begin, group * tall + end, height,
                       broadcast, tile_step);
      if (!along_outputs || tap == 0)
        copy_vectors(along_outputs ? grads : pixels, count, group * wide, wide, panels.padded(), vectors);
      T* tap_to = bank_to + tap / p.kernel[1] * stride[4] + tap % p.kernel[1] * stride[5];
      for (int64_t panel = 0; panel < panels.count; ++panel)
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t row = begin + tile * height, first = panels.first(panel);
          const int64_t out = along_outputs ? group * wide + first : group * tall + row;
          GradientTile<T> f;
          f.broadcast = broadcast + tile * tile_step;
          f.vectors = vectors + first;
          f.vectors_row = panels.padded();
          f.count = count;
          f.rows = min(height, end - row);
          f.columns = min(panels.width(panel) * lanes, wide - first);
          f.to = tap_to + out * stride[2] + (along_outputs ? row : first) * stride[3];
          f.to_row = along_outputs ? stride[3] : stride[2];
          f.to_column = along_outputs ? stride[2] : stride[3];
          f.add = add;
          switch (panels.width(panel)) {
            case 1: gradient_panel<T, 1>(f, widest); break;
            case 2: gradient_panel<T, 2>(f, widest); break;
            case 3: gradient_panel<T, 3>(f, widest); break;
#if MAX_VECTORS > 3
            case 4: gradient_tile<T, 4, tile_rows(4)>(f); break;
#endif
          }
        }
    }
    add = true;
    at += kBlock;
  } while (at < stop);
}

// --- Depthwise -------------------------------------------------------------------------------------------------------

// The image's filters as [m][taps][C].
template <typename T>
const T* depthwise_filters(const Problem& p, const T* filters, int64_t image, Scratch& scratch) {
  const int64_t *stride = p.filter_stride, taps = p.taps();
  T* packed = scratch.get<T>(p.regions * taps * p.channels);
  for (int64_t j = 0; j < p.regions; ++j) {
    const T* from = bank_of(p, filters, p.bank(image, j));
    for (int64_t tap = 0; tap < taps; ++tap) {
      const T* at = from + tap / p.kernel[1] * stride[4] + tap % p.kernel[1] * stride[5];
      T* to = packed + (j * taps + tap) * p.channels;
      for (int64_t c = 0; c < p.channels; ++c) to[c] = at[c * stride[2]];
    }
  }
  return packed;
}

// For P outputs side by side: to[i][c] = sum over taps of a[tap][i][c] * b[tap][c], V vectors of channels from c on.
template <typename T, int P, int V>
INLINE void sum_products_of(const T* const* a, int64_t a_step, const T* const* b, int64_t taps, int64_t c, int64_t last,
                            T* to, int64_t to_step) {
  constexpr int lanes = Vector<T>::lanes;
  Vec<T> total[P][V] = {};
  for (int64_t tap = 0; tap < taps; ++tap) {
    const T *from = a[tap] + c, *weights = b[tap] + c;
    Vec<T> weight[V];
    UNROLL for (int v = 0; v < V - 1; ++v) weight[v] = load(weights + v * lanes);
    weight[V - 1] = load_up_to(weights + (V - 1) * lanes, last);
    UNROLL for (int i = 0; i < P; ++i) {
      UNROLL for (int v = 0; v < V - 1; ++v) total[i][v] += load(from + i * a_step + v * lanes) * weight[v];
      total[i][V - 1] += load_up_to(from + i * a_step + (V - 1) * lanes, last) * weight[V - 1];
    }
  }
  UNROLL for (int i = 0; i < P; ++i) {
    UNROLL for (int v = 0; v < V - 1; ++v) store(to + i * to_step + c + v * lanes, total[i][v]);
    store_up_to(to + i * to_step + c + (V - 1) * lanes, total[i][V - 1], last);
  }
}

template <typename T, int P, int V>
INLINE void sum_products_all(const T* const* a, int64_t a_step, const T* const* b, int64_t taps, int64_t channels,
                             T* to, int64_t to_step) {
  constexpr int64_t lanes = Vector<T>::lanes;
  int64_t c = 0;
  for (; c + V * lanes <= channels; c += V * lanes)
    sum_products_of<T, P, V>(a, a_step, b, taps, c, lanes, to, to_step);
  for (; c < channels; c += lanes)
    sum_products_of<T, P, 1>(a, a_step, b, taps, c, channels - c, to, to_step);
}

template <typename T>
void sum_products(const T* const* a, const T* const* b, int64_t taps, int64_t channels, T* to) {
  sum_products_all<T, 1, 4>(a, 0, b, taps, channels, to, 0);
}

template <typename T>
void depthwise_forward(const Problem& p, const int32_t* regions, const T* input, const T* filters, T* output,
                       int64_t image, int64_t first_row, int64_t last_row) {
  static thread_local Scratch packed_memory, pixels_memory, weights_memory;
  const int64_t taps = p.taps(), channels = p.channels, step = p.stride[1] * channels;
  const T* packed = depthwise_filters(p, filters, image, packed_memory);
  const T** pixels = pixels_memory.get<const T*>(taps);
  const T** weights = weights_memory.get<const T*>(taps);
  const T* base = input + image * p.height * p.width * channels;
  const int64_t reach = (p.kernel[1] - 1) * p.dilation[1];
  for (int64_t row = first_row; row < last_row; ++row) {
    const int64_t start = (image * p.out_height + row) * p.out_width;
    for (int64_t column = 0; column < p.out_width;) {
      const int32_t region = regions[start + column];
      const int64_t left = column * p.stride[1] - p.padding[1];
      // How many outputs from here on have the same filters, and windows that no border cuts.
      int64_t run = 1;
      if (left >= 0)
        while (run < 4 && column + run < p.out_width && regions[start + column + run] == region &&
               left + run * p.stride[1] + reach < p.width)
          ++run;
      const T* weight = packed + region * taps * channels;
      int64_t count = 0;
      for (int64_t u = 0; u < p.kernel[0]; ++u) {
        const int64_t y = row * p.stride[0] - p.padding[0] + u * p.dilation[0];
        if (y < 0 || y >= p.height) continue;
        for (int64_t v = 0; v < p.kernel[1]; ++v) {
          const int64_t x = left + v * p.dilation[1];
          if (x < 0 || x >= p.width) continue;
          pixels[count] = base + (y * p.width + x) * channels;
          weights[count++] = weight + (u * p.kernel[1] + v) * channels;
        }
      }
      T* to = output + (start + column) * channels;
      // The pixels that the windows reach next for the first time, and where their outputs go.
      for (int64_t u = max(0, p.kernel[0] - p.stride[0]); u < p.kernel[0]; ++u) {
        const int64_t y = max(0, min(p.height - 1, row * p.stride[0] - p.padding[0] + u * p.dilation[0]));
        fetch_row(base + (y * p.width + left + reach) * channels + kAhead * step, run * step);
      }
      fetch_row(to + kAhead * channels, run * channels);
      if (run == 4) {
        sum_products_all<T, 4, 2>(pixels, step, weights, count, channels, to, channels);
        column += 4;
      } else if (run >= 2) {
        sum_products_all<T, 2, 4>(pixels, step, weights, count, channels, to, channels);
        column += 2;
      } else {
        sum_products(pixels, weights, count, channels, to);
        column += 1;
      }
    }
  }
}

template <typename T>
void depthwise_grad_input(const Problem& p, const int32_t* regions, const T* filters, const T* grad_output,
                          T* grad_input, int64_t image, int64_t first_row, int64_t last_row) {
  static thread_local Scratch packed_memory, pixels_memory, weights_memory;
  const int64_t taps = p.taps(), channels = p.channels;
  const T* packed = depthwise_filters(p, filters, image, packed_memory);
  const T** pixels = pixels_memory.get<const T*>(taps);
  const T** weights = weights_memory.get<const T*>(taps);
  for (int64_t y = first_row; y < last_row; ++y)
    for (int64_t x = 0; x < p.width; ++x) {
      int64_t count = 0;
      for (int64_t u = 0; u < p.kernel[0]; ++u) {
        const int64_t down = y + p.padding[0] - u * p.dilation[0], row = down / p.stride[0];
        if (down < 0 || down % p.stride[0] || row >= p.out_height) continue;
        for (int64_t v = 0; v < p.kernel[1]; ++v) {
          const int64_t right = x + p.padding[1] - v * p.dilation[1], column = right / p.stride[1];
          if (right < 0 || right % p.stride[1] || column >= p.out_width) continue;
          const int64_t position = (image * p.out_height + row) * p.out_width + column;
          pixels[count] = grad_output + position * channels;
          weights[count++] = packed + (regions[position] * taps + u * p.kernel[1] + v) * channels;
        }
      }
      T* to = grad_input + ((image * p.height + y) * p.width + x) * channels;
      const int64_t below = max(0, min(p.out_height - 1, (y + p.padding[0]) / p.stride[0]));
      const int64_t beside = (x + p.padding[1]) / p.stride[1];
      if (x % p.stride[1] == 0)
        fetch_row(grad_output + ((image * p.out_height + below) * p.out_width + beside + kAhead) * channels, channels);
      fetch_row(to + kAhead * channels, channels);
      sum_products(pixels, weights, count, channels, to);
    }
}

// totals[j] = <u, w[j]> for `banks` rows w[j] of `count` numbers.
template <typename T, int B>
INLINE void inner_products(const T* u, const T* const* w, int64_t count, T* totals) {
  constexpr int64_t lanes = Vector<T>::lanes;
  Vec<T> total[B] = {};
  for (int64_t c = 0; c < count; c += lanes) {
    const Vec<T> value = load_up_to(u + c, count - c);
    UNROLL for (int j = 0; j < B; ++j) total[j] += value * load_up_to(w[j] + c, count - c);
  }
  UNROLL for (int j = 0; j < B; ++j) totals[j] = sum<T>(total[j]);
}

template <typename T>
void depthwise_rest(const Problem& p, const int32_t* regions, const int32_t* candidates, int64_t ranks, const T* input,
                    const T* filters, const T* grad_output, T* grad_filters,
                    const Response<T>* response, int64_t image, int64_t first_row, int64_t last_row) {
  static thread_local Scratch packed_memory, products_memory, banks_memory, totals_memory;
  constexpr int64_t lanes = Vector<T>::lanes;
  const int64_t taps = p.taps(), channels = p.channels, numbers = taps * channels;
  const T* packed = response ? depthwise_filters(p, filters, image, packed_memory) : nullptr;
  T* u = products_memory.get<T>(numbers);
  const int64_t count = candidates ? ranks : p.regions;
  const T** banks = banks_memory.get<const T*>(count);
  T* totals = totals_memory.get<T>(count);
  const T* base = input + image * p.height * p.width * channels;
  for (int64_t row = first_row; row < last_row; ++row)
    for (int64_t column = 0; column < p.out_width; ++column) {
      const int64_t within = row * p.out_width + column, position = image * p.positions() + within;
      const T* grad = grad_output + position * channels;
      fetch_row(grad + kAhead / 2 * channels, channels);
      for (int64_t u = max(0, p.kernel[0] - p.stride[0]); u < p.kernel[0]; ++u) {
        const int64_t y = max(0, min(p.height - 1, row * p.stride[0] - p.padding[0] + u * p.dilation[0]));
        const int64_t x = (column + kAhead / 2) * p.stride[1] - p.padding[1] + (p.kernel[1] - 1) * p.dilation[1];
        fetch_row(base + (y * p.width + x) * channels, p.stride[1] * channels);
      }
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t y = row * p.stride[0] - p.padding[0] + tap / p.kernel[1] * p.dilation[0];
        const int64_t x = column * p.stride[1] - p.padding[1] + tap % p.kernel[1] * p.dilation[1];
        T* to = u + tap * channels;
        if (y < 0 || y >= p.height || x < 0 || x >= p.width) {
          std::memset(to, 0, channels * sizeof(T));
          continue;
        }
        const T* pixel = base + (y * p.width + x) * channels;
        for (int64_t c = 0; c < channels; c += lanes)
          store_up_to(to + c, load_up_to(grad + c, channels - c) * load_up_to(pixel + c, channels - c), channels - c);
      }
      if (grad_filters) {
        T* to = grad_filters + regions[position] * numbers;
        for (int64_t c = 0; c < numbers; c += lanes)
          store_up_to(to + c, load_up_to(to + c, numbers - c) + load_up_to(u + c, numbers - c), numbers - c);
      }
      if (response) {
        for (int64_t j = 0; j < count; ++j) {
          const int64_t bank = candidates ? candidates[(image * ranks + j) * p.positions() + within] : j;
          banks[j] = packed + bank * numbers;
        }
        int64_t j = 0;
        for (; j + 4 <= count; j += 4) inner_products<T, 4>(u, banks + j, numbers, totals + j);
        for (; j < count; ++j) inner_products<T, 1>(u, banks + j, numbers, totals + j);
        for (j = 0; j < count; ++j) *response->at(image, j, within) = totals[j];
      }
    }
}

// --- The region map --------------------------------------------------------------------------------------------------

template <typename T>
void region_map(const T* guide, int64_t region_stride, int64_t position_stride, int64_t num_regions, int64_t count,
                int32_t* regions) {
  constexpr int64_t block = 64;
  T best[block], beside[block];
  for (int64_t at = 0; at < count; at += block) {
    const int64_t here = min(block, count - at);
    const T* from = guide + at * position_stride;
    int32_t* to = regions + at;
    for (int64_t i = 0; i < here; ++i) best[i] = from[i * position_stride], to[i] = 0;
    for (int64_t j = 1; j < num_regions; ++j) {
      const T* scores = from + j * region_stride;
      if (position_stride != 1) {
        for (int64_t i = 0; i < here; ++i) beside[i] = scores[i * position_stride];
        scores = beside;
      }
      for (int64_t i = 0; i < here; ++i) {
        const bool more = !(scores[i] <= best[i]) & (best[i] == best[i]);  // the first NaN wins, as in torch.max
        best[i] = more ? scores[i] : best[i];
        to[i] = more ? int32_t(j) : to[i];
      }
    }
  }
}

template <typename T>
constexpr Kernels<T> all() {
  return {forward<T>, responses<T>, transposed<T>, filter_gradient<T>, depthwise_forward<T>, depthwise_grad_input<T>,
          depthwise_rest<T>, region_map<T>, transpose_rows<T>};
}

}  // namespace

const Kernels<float> float_kernels = all<float>();
const Kernels<double> double_kernels = all<double>();

}  // namespace CAPABILITY
}  // namespace drconv
