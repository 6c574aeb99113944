// The loops of the operator for one CPU capability: compiled once for each, with -DCAPABILITY=<name>,
// -DVECTOR_BYTES=<width> and -DMAX_VECTORS=<vectors of a tile>. Everything in here is local to the capability.
#include "kernels.h"

#include <cstring>
#include <new>
#include <type_traits>

#if VECTOR_BYTES > 16
#include <immintrin.h>
#endif

#define UNROLL _Pragma("GCC unroll 16")
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
constexpr int64_t kBlockRoom = kBlock + 16;  // a last tile may reach beyond

// --- Where the window of an output position lies in the input --------------------------------------------------------

template <typename T>
struct Windows {
  Windows(const Problem& p, const T* input, const T* zeros)
      : p(p), input(input), zeros(zeros),
        plain(p.taps() == 1 && p.stride[0] == 1 && p.stride[1] == 1 && p.padding[0] == 0 && p.padding[1] == 0) {}

  // rows[tap * step + i] = the pixel under each tap of each position, or `zeros` beyond the border. Up to `room`
  // entries, the last position's again beyond `count`.
  void find(const int32_t* positions, int64_t count, int64_t room, int64_t step, const T** rows) const {
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
          rows[tap * step + i] = inside ? base + (y * p.width + x) * p.channels : zeros;
        }
      }
    }
    const int64_t taps = p.taps();
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t i = count; i < room; ++i) rows[tap * step + i] = rows[tap * step + count - 1];
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

// Transposes a block of lanes x lanes numbers in registers.
template <typename T>
INLINE void transpose(Vec<T> (&rows)[Vector<T>::lanes]) {
  constexpr int lanes = Vector<T>::lanes;
  typedef typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type Index;
  typedef Index Indices __attribute__((vector_size(VECTOR_BYTES)));
  UNROLL for (int step = lanes / 2; step; step /= 2) {
    Indices low, high;
    UNROLL for (int lane = 0; lane < lanes; ++lane) {
      low[lane] = lane & step ? lanes + lane - step : lane;
      high[lane] = lane & step ? lanes + lane : lane + step;
    }
    UNROLL for (int i = 0; i < lanes; ++i) {
      if (i & step) continue;
      const Vec<T> a = rows[i], b = rows[i + step];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + step] = __builtin_shuffle(a, b, high);
    }
  }
}

// to[k * width + j] = from[j * row_stride + k * column_stride] for j < columns, and 0 up to width; k < depth.
template <typename T>
void pack(const T* from, int64_t row_stride, int64_t column_stride, int64_t columns, int64_t depth, int64_t width,
          T* to) {
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t j = 0; j < width; j += lanes) {
    const int64_t there = max(0, min(lanes, columns - j));
    int64_t k = 0;
    if (row_stride == 1) {
      for (; k < depth; ++k) store(to + k * width + j, load_up_to(from + j + k * column_stride, there));
    } else if (column_stride == 1) {
      for (; k < depth; k += lanes) {
        const int64_t deep = min(lanes, depth - k);
        Vec<T> rows[lanes];
        UNROLL for (int i = 0; i < lanes; ++i)
          rows[i] = i < there ? load_up_to(from + (j + i) * row_stride + k, deep) : Vec<T>{};
        transpose<T>(rows);
        UNROLL for (int i = 0; i < lanes; ++i)
          if (i < deep) store(to + (k + i) * width + j, rows[i]);
      }
    }
    for (; k < depth; ++k)
      for (int64_t i = 0; i < lanes; ++i)
        to[k * width + j + i] = i < there ? from[(j + i) * row_stride + k * column_stride] : T(0);
  }
}

// --- Tiles -----------------------------------------------------------------------------------------------------------

// tile[i][v] += sum over k of a[i][k] * b[k][v].
template <typename T, int M, int V>
INLINE void multiply(const T* const* rows, int64_t offset, const T* b, int64_t b_row, int64_t depth,
                     Vec<T> (&tile)[M][V]) {
  constexpr int lanes = Vector<T>::lanes;
  const T* a[M];
  UNROLL for (int i = 0; i < M; ++i) a[i] = rows[i] + offset;
  for (int64_t k = 0; k < depth; ++k, b += b_row) {
    Vec<T> columns[V];
    UNROLL for (int v = 0; v < V; ++v) columns[v] = load(b + v * lanes);
    UNROLL for (int i = 0; i < M; ++i) {
      const Vec<T> number = a[i][k] - Vec<T>{};
      UNROLL for (int v = 0; v < V; ++v) tile[i][v] += number * columns[v];
    }
  }
}

// --- Forward ---------------------------------------------------------------------------------------------------------

template <typename T>
struct ForwardBlock {
  const T* const* rows;  // [taps][kBlockRoom]
  int64_t taps, offset, depth;
  const T* b;
  int64_t b_tap, b_row;
  const int32_t* positions;
  int64_t count;
  T* output;
  int64_t out_channels, columns;
};

template <typename T, int V, int M>
INLINE void forward_tile(const ForwardBlock<T>& f, int64_t i, int64_t valid) {
  constexpr int lanes = Vector<T>::lanes;
  Vec<T> tile[M][V] = {};
  for (int64_t tap = 0; tap < f.taps; ++tap)
    multiply<T, M, V>(f.rows + tap * kBlockRoom + i, f.offset, f.b + tap * f.b_tap, f.b_row, f.depth, tile);
  const int64_t last = f.columns - (V - 1) * lanes;
  UNROLL for (int row = 0; row < M; ++row) {
    if (row >= valid) break;
    T* to = f.output + int64_t(f.positions[i + row]) * f.out_channels;
    UNROLL for (int v = 0; v < V - 1; ++v) store(to + v * lanes, tile[row][v]);
    store_up_to(to + (V - 1) * lanes, tile[row][V - 1], last);
  }
}

template <typename T, int V>
void forward_panel(const ForwardBlock<T>& f) {
  constexpr int M = tile_rows(V), half = M / 2;
  for (int64_t i = 0; i < f.count;) {
    const int64_t left = f.count - i;
    if (left <= half) {
      forward_tile<T, V, half>(f, i, left);
      i += half;
    } else {
      forward_tile<T, V, M>(f, i, left);
      i += M;
    }
  }
}

template <typename T>
void forward(const Problem& p, const Order& order, const T* input, const T* filters, T* output, Share share) {
  static thread_local Scratch packed_memory, rows_memory, zeros_memory;
  const int64_t total = p.batch * p.positions();
  const int64_t begin = total * share.index / share.count, end = total * (share.index + 1) / share.count;
  if (begin >= end) return;
  const Panels<T> panels(p.group_outputs());
  const int64_t depth = p.group_channels(), taps = p.taps(), lanes = Vector<T>::lanes;
  const int64_t *stride = p.filter_stride, per_group = panels.padded() * taps * depth;
  const Windows<T> windows(p, input, zero_row<T>(zeros_memory, p.channels));
  const T** rows = rows_memory.get<const T*>(taps * kBlockRoom);
  // Filters whose output channels lie side by side can be read where they are.
  const bool in_place = stride[2] == 1 && p.group_outputs() % lanes == 0;
  int64_t bank = 0;
  while (order.offsets[bank + 1] <= begin) ++bank;
  for (int64_t at = begin; at < end; ++bank) {
    const int64_t stop = min(end, order.offsets[bank + 1]);
    if (at >= stop) continue;
    const T* filter = bank_of(p, filters, bank);
    // A panel that is read often is worth a copy that lies together.
    const bool direct = in_place && taps == 1 && (stop - at <= 2 * kBlock || p.out_channels <= 64);
    T* packed = direct ? nullptr : packed_memory.get<T>(p.groups * per_group);
    if (!direct) {
      for (int64_t group = 0; group < p.groups; ++group)
        for (int64_t panel = 0; panel < panels.count; ++panel) {
          const int64_t width = panels.width(panel) * lanes, first = panels.first(panel);
          T* to = packed + group * per_group + first * taps * depth;
          const T* from = filter + (group * p.group_outputs() + first) * stride[2];
          for (int64_t tap = 0; tap < taps; ++tap)
            pack(from + tap / p.kernel[1] * stride[4] + tap % p.kernel[1] * stride[5], stride[2], stride[3],
                 p.group_outputs() - first, depth, width, to + tap * depth * width);
        }
    }
    for (; at < stop; at += kBlock) {
      const int64_t count = min(kBlock, stop - at);
      windows.find(order.positions + at, count, min(count + 16, kBlockRoom), kBlockRoom, rows);
      for (int64_t group = 0; group < p.groups; ++group)
        for (int64_t panel = 0; panel < panels.count; ++panel) {
          const int64_t width = panels.width(panel) * lanes, first = panels.first(panel);
          const int64_t channel = group * p.group_outputs() + first;
          ForwardBlock<T> block{rows, taps, group * depth, depth,
                                direct ? filter + channel : packed + group * per_group + first * taps * depth,
                                depth * width, direct ? stride[3] : width,
                                order.positions + at, count, output + channel,
                                p.out_channels, min(width, p.group_outputs() - first)};
          switch (panels.width(panel)) {
            case 1: forward_panel<T, 1>(block); break;
            case 2: forward_panel<T, 2>(block); break;
            case 3: forward_panel<T, 3>(block); break;
#if MAX_VECTORS > 3
            case 4: forward_panel<T, 4>(block); break;
#endif
          }
        }
    }
    at = stop;
  }
}

// --- Transposed: the guide's response and grad_input -----------------------------------------------------------------

template <typename T>
struct TransposedBlock {
  const T* const* grads;    // [kBlockRoom], rows of grad_output
  int64_t offset, depth;    // the group's first output channel, and how many
  const T* b;
  int64_t b_row;
  const T* const* rows;     // [kBlockRoom], pixels under one tap
  int64_t count, columns;
  int64_t channel;          // first input channel of the panel
  Vec<T>* response;         // [kBlock], or null
  const bool* chosen;       // [kBlock]
  T* const* to;             // [kBlockRoom], where grad_input's pixels are, null beyond the border; or null
};

template <typename T, int V, int M>
INLINE void transposed_tile(const TransposedBlock<T>& f, int64_t i, int64_t valid) {
  constexpr int lanes = Vector<T>::lanes;
  Vec<T> tile[M][V] = {};
  multiply<T, M, V>(f.grads + i, f.offset, f.b, f.b_row, f.depth, tile);
  const int64_t last = f.columns - (V - 1) * lanes;
  UNROLL for (int row = 0; row < M; ++row) {
    if (row >= valid) break;
    if (f.response) {
      const T* x = f.rows[i + row] + f.channel;
      Vec<T> product = tile[row][V - 1] * load_up_to(x + (V - 1) * lanes, last);
      UNROLL for (int v = 0; v < V - 1; ++v) product += tile[row][v] * load(x + v * lanes);
      f.response[i + row] += product;
    }
    if (f.to && f.chosen[i + row] && f.to[i + row]) {
      T* to = f.to[i + row] + f.channel;
      UNROLL for (int v = 0; v < V - 1; ++v) store(to + v * lanes, load(to + v * lanes) + tile[row][v]);
      const int64_t tail = (V - 1) * lanes;
      store_up_to(to + tail, load_up_to(to + tail, last) + tile[row][V - 1], last);
    }
  }
}

template <typename T, int V>
void transposed_panel(const TransposedBlock<T>& f) {
  constexpr int M = tile_rows(V), half = M / 2;
  for (int64_t i = 0; i < f.count;) {
    const int64_t left = f.count - i;
    if (left <= half) {
      transposed_tile<T, V, half>(f, i, left);
      i += half;
    } else {
      transposed_tile<T, V, M>(f, i, left);
      i += M;
    }
  }
}

template <typename T>
void transposed(const Problem& p, const Order* orders, int64_t ranks, const int64_t* regions, const T* input,
                const T* filters, const T* grad_output, T* grad_input, int64_t input_row, T* response, int64_t image,
                int64_t first_row, int64_t last_row) {
  static thread_local Scratch packed_memory, rows_memory, zeros_memory, list_memory, to_memory, grads_memory;
  const int64_t lanes = Vector<T>::lanes, taps = p.taps(), depth = p.group_outputs(), *stride = p.filter_stride;
  const int64_t from = image * p.positions() + first_row * p.out_width;
  const int64_t until = image * p.positions() + last_row * p.out_width;
  const Panels<T> panels(p.group_channels());
  const T* zeros = zero_row<T>(zeros_memory, p.channels);
  const Windows<T> windows(p, input, zeros);
  const T** rows = rows_memory.get<const T*>(taps * kBlockRoom);
  T** to = to_memory.get<T*>(taps * kBlockRoom);
  const T** grads = grads_memory.get<const T*>(kBlockRoom);
  const T* image_input = input + (image * p.height + input_row) * p.width * p.channels;
  Vec<T> sums[kBlock];
  bool chosen[kBlock];

  // Positions of [from, until) that an order gives to bank j.
  auto span = [&](const Order& order, int64_t j, int64_t& begin, int64_t& end) {
    const int64_t bank = p.bank(image, j);
    begin = lower_bound(order.positions, order.offsets[bank], order.offsets[bank + 1], from);
    end = lower_bound(order.positions, begin, order.offsets[bank + 1], until);
  };
  // All positions, those of a region together: whether a pixel's filters are its own then changes rarely.
  int32_t* all = nullptr;
  int64_t all_count = 0;
  if (ranks == 0) {
    all = list_memory.get<int32_t>(until - from);
    for (int64_t j = 0; j < p.regions; ++j) {
      int64_t begin, end;
      span(orders[0], j, begin, end);
      std::memcpy(all + all_count, orders[0].positions + begin, (end - begin) * sizeof(int32_t));
      all_count += end - begin;
    }
  }
  const int64_t channels_of_response = ranks ? ranks : p.regions;
  const int64_t per_group = panels.padded() * taps * depth;
  for (int64_t j = 0; j < p.regions; ++j) {
    bool is_packed = false;
    T* packed = nullptr;
    for (int64_t rank = 0; rank < max(ranks, 1); ++rank) {
      const int32_t* list = all;
      int64_t list_count = all_count;
      if (ranks) {
        int64_t begin, end;
        span(orders[rank], j, begin, end);
        list = orders[rank].positions + begin;
        list_count = end - begin;
      }
      if (list_count == 0) continue;
      if (!is_packed) {
        packed = packed_memory.get<T>(p.groups * per_group);
        const T* filter = bank_of(p, filters, p.bank(image, j));
        for (int64_t group = 0; group < p.groups; ++group)
          for (int64_t tap = 0; tap < taps; ++tap)
            for (int64_t panel = 0; panel < panels.count; ++panel) {
              const int64_t first = panels.first(panel);
              pack(filter + group * depth * stride[2] + first * stride[3] + tap / p.kernel[1] * stride[4] +
                       tap % p.kernel[1] * stride[5],
                   stride[3], stride[2], p.group_channels() - first, depth, panels.width(panel) * lanes,
                   packed + group * per_group + (tap * panels.padded() + first) * depth);
            }
        is_packed = true;
      }
      for (int64_t at = 0; at < list_count; at += kBlock) {
        const int64_t count = min(kBlock, list_count - at), room = min(count + 16, kBlockRoom);
        const int32_t* positions = list + at;
        windows.find(positions, count, room, kBlockRoom, rows);
        for (int64_t i = 0; i < room; ++i)
          grads[i] = grad_output + int64_t(positions[min(i, count - 1)]) * p.out_channels;
        bool any = false;
        for (int64_t i = 0; i < count; ++i) {
          chosen[i] = grad_input && regions[positions[i]] == j;
          any |= chosen[i];
          sums[i] = Vec<T>{};
        }
        if (!any && !response) continue;
        if (any)
          for (int64_t tap = 0; tap < taps; ++tap)
            for (int64_t i = 0; i < count; ++i) {
              const T* row = rows[tap * kBlockRoom + i];
              to[tap * kBlockRoom + i] = row == zeros ? nullptr : grad_input + (row - image_input);
            }
        for (int64_t group = 0; group < p.groups; ++group)
          for (int64_t tap = 0; tap < taps; ++tap)
            for (int64_t panel = 0; panel < panels.count; ++panel) {
              const int64_t first = panels.first(panel), width = panels.width(panel) * lanes;
              TransposedBlock<T> block{grads, group * depth, depth,
                                       packed + group * per_group + (tap * panels.padded() + first) * depth, width,
                                       rows + tap * kBlockRoom, count, min(width, p.group_channels() - first),
                                       group * p.group_channels() + first, response ? sums : nullptr, chosen,
                                       any ? to + tap * kBlockRoom : nullptr};
              switch (panels.width(panel)) {
                case 1: transposed_panel<T, 1>(block); break;
                case 2: transposed_panel<T, 2>(block); break;
                case 3: transposed_panel<T, 3>(block); break;
#if MAX_VECTORS > 3
                case 4: transposed_panel<T, 4>(block); break;
#endif
              }
            }
        if (response)
          for (int64_t i = 0; i < count; ++i)
            response[(image * channels_of_response + (ranks ? rank : j)) * p.positions() + positions[i] -
                     image * p.positions()] = sum<T>(sums[i]);
      }
    }
  }
}

// --- The filters' gradient -------------------------------------------------------------------------------------------

template <typename T>
struct GradientTask {
  const T* const* broadcast;  // rows whose numbers multiply
  const T* const* vectors;    // rows that are multiplied, a panel of them
  int64_t count;
  int64_t first, rows;        // of the broadcast rows' numbers: where the tile begins, how many are new
  int64_t columns;
  T* to;                      // of the tile's first new row
  int64_t to_row, to_column;
};

template <typename T, int V, int M, bool Partial>
INLINE void gradient_tile(const GradientTask<T>& f, int64_t skip) {
  constexpr int lanes = Vector<T>::lanes;
  Vec<T> tile[M][V] = {};
  const int64_t last = f.columns - (V - 1) * lanes;
  for (int64_t n = 0; n < f.count; ++n) {
    const T *a = f.broadcast[n] + f.first - skip, *b = f.vectors[n];
    Vec<T> columns[V];
    UNROLL for (int v = 0; v < V - 1; ++v) columns[v] = load(b + v * lanes);
    columns[V - 1] = Partial ? load_some(b + (V - 1) * lanes, last) : load(b + (V - 1) * lanes);
    UNROLL for (int i = 0; i < M; ++i) {
      const Vec<T> number = a[i] - Vec<T>{};
      UNROLL for (int v = 0; v < V; ++v) tile[i][v] += number * columns[v];
    }
  }
  for (int64_t i = skip; i < M; ++i) {
    T* to = f.to + (i - skip) * f.to_row;
    for (int64_t c = 0; c < f.columns; ++c) to[c * f.to_column] = tile[i][c / lanes][c % lanes];
  }
}

template <typename T, int V, bool Partial>
void gradient_rows(const GradientTask<T>& task) {
  constexpr int M = tile_rows(V);
  // Fewer new rows than a tile has: the tile begins earlier, or goes row by row where there are not even as many.
  if (task.rows == M) {
    gradient_tile<T, V, M, Partial>(task, 0);
  } else if (task.first >= M - task.rows) {
    gradient_tile<T, V, M, Partial>(task, M - task.rows);
  } else {
    for (int64_t i = 0; i < task.rows; ++i) {
      GradientTask<T> one = task;
      one.first += i;
      one.to += i * task.to_row;
      gradient_tile<T, V, 1, Partial>(one, 0);
    }
  }
}

template <typename T, int V>
void gradient_panel(const GradientTask<T>& task) {
  if (task.columns % Vector<T>::lanes) gradient_rows<T, V, true>(task);
  else gradient_rows<T, V, false>(task);
}

template <typename T>
void filter_gradient(const Problem& p, const Order& order, const T* input, const T* grad_output, T* grad_filters,
                     Share share) {
  static thread_local Scratch rows_memory, grads_memory, zeros_memory, vectors_memory;
  const int64_t lanes = Vector<T>::lanes, taps = p.taps(), *stride = p.filter_stride;
  // The vectors run along what lies side by side in the result.
  const bool along_outputs = stride[2] == 1;
  const int64_t wide = along_outputs ? p.group_outputs() : p.group_channels();
  const int64_t tall = along_outputs ? p.group_channels() : p.group_outputs();
  const Panels<T> panels(wide);
  const Windows<T> windows(p, input, zero_row<T>(zeros_memory, p.channels));
  int64_t tasks = 0;  // of a tap and group
  for (int64_t panel = 0; panel < panels.count; ++panel) tasks += divide_up(tall, tile_rows(panels.width(panel)));
  const int64_t per_bank = taps * p.groups * tasks, total = p.batch * p.positions() + 8 * p.banks();
  const double begin = double(total) * per_bank * share.index / share.count;
  const double end = double(total) * per_bank * (share.index + 1) / share.count;
  double start = 0;
  for (int64_t bank = 0; bank < p.banks(); ++bank) {
    const int64_t offset = order.offsets[bank], count = order.offsets[bank + 1] - offset;
    const double cost = count + 8, stop = start + cost * per_bank;
    if (stop > begin && start < end) {
      const T** rows = rows_memory.get<const T*>(taps * (count + 1));
      const T** grads = grads_memory.get<const T*>(count + 1);
      const T** vectors = vectors_memory.get<const T*>(count + 1);
      if (count) windows.find(order.positions + offset, count, count, count, rows);
      for (int64_t i = 0; i < count; ++i)
        grads[i] = grad_output + int64_t(order.positions[offset + i]) * p.out_channels;
      T* bank_to = const_cast<T*>(bank_of<T>(p, grad_filters, bank));
      int64_t task = 0;
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t group = 0; group < p.groups; ++group)
          for (int64_t panel = 0; panel < panels.count; ++panel) {
            const int64_t height = tile_rows(panels.width(panel)), first = panels.first(panel);
            const int64_t parts = divide_up(tall, height);
            const double task_start = start + cost * task;
            task += parts;
            if (task_start + cost * parts <= begin || task_start >= end) continue;
            const T** pixels = rows + tap * count;
            const T* const* across = along_outputs ? grads : pixels;
            const int64_t across_first = group * wide + first;
            for (int64_t i = 0; i < count; ++i) vectors[i] = across[i] + across_first;
            for (int64_t part = 0; part < parts; ++part) {
              // A task belongs to the share that its start lies in.
              const double here = task_start + cost * part;
              if (here < begin || here >= end) continue;
              GradientTask<T> f;
              f.broadcast = along_outputs ? pixels : grads;
              f.vectors = vectors;
              f.count = count;
              f.rows = min(height, tall - part * height);
              f.first = group * tall + part * height;
              f.columns = min(panels.width(panel) * lanes, wide - first);
              f.to_row = along_outputs ? stride[3] : stride[2];
              f.to_column = along_outputs ? stride[2] : stride[3];
              const int64_t out = along_outputs ? group * wide + first : group * tall + part * height;
              const int64_t in = along_outputs ? part * height : first;
              f.to = bank_to + out * stride[2] + in * stride[3] + tap / p.kernel[1] * stride[4] +
                     tap % p.kernel[1] * stride[5];
              switch (panels.width(panel)) {
                case 1: gradient_panel<T, 1>(f); break;
                case 2: gradient_panel<T, 2>(f); break;
                case 3: gradient_panel<T, 3>(f); break;
#if MAX_VECTORS > 3
                case 4: gradient_panel<T, 4>(f); break;
#endif
              }
            }
          }
    }
    start = stop;
  }
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

// to[c] = sum over i of a[i][c] * b[i][c].
template <typename T, int V>
INLINE void sum_products_of(const T* const* a, const T* const* b, int64_t count, int64_t c, int64_t columns, T* to) {
  constexpr int lanes = Vector<T>::lanes;
  Vec<T> total[V] = {};
  const int64_t last = columns - (V - 1) * lanes;
  for (int64_t i = 0; i < count; ++i) {
    UNROLL for (int v = 0; v < V - 1; ++v) total[v] += load(a[i] + c + v * lanes) * load(b[i] + c + v * lanes);
    const int64_t at = c + (V - 1) * lanes;
    total[V - 1] += load_up_to(a[i] + at, last) * load_up_to(b[i] + at, last);
  }
  UNROLL for (int v = 0; v < V - 1; ++v) store(to + c + v * lanes, total[v]);
  store_up_to(to + c + (V - 1) * lanes, total[V - 1], last);
}

template <typename T>
void sum_products(const T* const* a, const T* const* b, int64_t count, int64_t channels, T* to) {
  constexpr int64_t lanes = Vector<T>::lanes;
  int64_t c = 0;
  for (; c + 4 * lanes <= channels; c += 4 * lanes) sum_products_of<T, 4>(a, b, count, c, 4 * lanes, to);
  for (; c < channels; c += lanes) sum_products_of<T, 1>(a, b, count, c, channels - c, to);
}

template <typename T>
void depthwise_forward(const Problem& p, const int64_t* regions, const T* input, const T* filters, T* output,
                       int64_t image, int64_t first_row, int64_t last_row) {
  static thread_local Scratch packed_memory, pixels_memory, weights_memory;
  const int64_t taps = p.taps(), channels = p.channels;
  const T* packed = depthwise_filters(p, filters, image, packed_memory);
  const T** pixels = pixels_memory.get<const T*>(taps);
  const T** weights = weights_memory.get<const T*>(taps);
  const T* base = input + image * p.height * p.width * channels;
  for (int64_t row = first_row; row < last_row; ++row)
    for (int64_t column = 0; column < p.out_width; ++column) {
      const int64_t position = (image * p.out_height + row) * p.out_width + column;
      const T* weight = packed + regions[position] * taps * channels;
      int64_t count = 0;
      for (int64_t u = 0; u < p.kernel[0]; ++u) {
        const int64_t y = row * p.stride[0] - p.padding[0] + u * p.dilation[0];
        if (y < 0 || y >= p.height) continue;
        for (int64_t v = 0; v < p.kernel[1]; ++v) {
          const int64_t x = column * p.stride[1] - p.padding[1] + v * p.dilation[1];
          if (x < 0 || x >= p.width) continue;
          pixels[count] = base + (y * p.width + x) * channels;
          weights[count++] = weight + (u * p.kernel[1] + v) * channels;
        }
      }
      sum_products(pixels, weights, count, channels, output + position * channels);
    }
}

template <typename T>
void depthwise_grad_input(const Problem& p, const int64_t* regions, const T* filters, const T* grad_output,
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
      sum_products(pixels, weights, count, channels, grad_input + ((image * p.height + y) * p.width + x) * channels);
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
void depthwise_rest(const Problem& p, const int64_t* regions, const int64_t* candidates, int64_t ranks, const T* input,
                    const T* filters, const T* grad_output, T* grad_filters, T* response, int64_t image,
                    int64_t first_row, int64_t last_row) {
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
        for (j = 0; j < count; ++j) response[(image * count + j) * p.positions() + within] = totals[j];
      }
    }
}

}  // namespace

const Kernels<float> float_kernels = {forward<float>, transposed<float>, filter_gradient<float>,
                                      depthwise_forward<float>, depthwise_grad_input<float>, depthwise_rest<float>};
const Kernels<double> double_kernels = {forward<double>, transposed<double>, filter_gradient<double>,
                                        depthwise_forward<double>, depthwise_grad_input<double>,
                                        depthwise_rest<double>};

}  // namespace CAPABILITY
}  // namespace drconv
