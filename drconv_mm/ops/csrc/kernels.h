// What the binding calls and each CPU capability implements. No torch in here, and what has a body is always inlined: of
// a function that several capabilities compile, the linker keeps one, which might be for another processor.
#pragma once

#include <cstdint>

#define DRCONV_INLINE __attribute__((always_inline)) inline

namespace drconv {

// Shapes of one call. Images lie as rows of pixels (channels_last), regions and positions in row-major order.
struct Problem {
  int64_t batch, channels, height, width;
  int64_t out_channels, out_height, out_width;
  int64_t regions;           // m
  int64_t groups;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  bool shared;               // whether all images have the same filters
  int64_t filter_stride[6];  // of the filters [N or 1, m, O, C/groups, kh, kw], in numbers

  DRCONV_INLINE int64_t positions() const { return out_height * out_width; }
  DRCONV_INLINE int64_t taps() const { return kernel[0] * kernel[1]; }
  DRCONV_INLINE int64_t group_channels() const { return channels / groups; }
  DRCONV_INLINE int64_t group_outputs() const { return out_channels / groups; }
  DRCONV_INLINE int64_t banks() const { return shared ? regions : batch * regions; }
  DRCONV_INLINE int64_t bank(int64_t image, int64_t region) const {
    return shared ? region : image * regions + region;
  }
};

// Output positions of the whole batch (image * positions + position), ordered by filter bank and ascending within one.
struct Order {
  const int32_t* positions;  // [batch * positions]
  const int64_t* offsets;    // [banks + 1]
};

// A thread's share of a piece of work: `index` of `count` even parts.
struct Share {
  int64_t index, count;
};

// Where the inner products of grad_output with what filter banks give go.
template <typename T>
struct Response {
  T* base;
  int64_t stride[3];  // of image, channel and position
  int64_t rank;       // the channel to write, -1 where each bank has its own
  DRCONV_INLINE T* at(int64_t image, int64_t channel, int64_t position) const {
    return base + image * stride[0] + channel * stride[1] + position * stride[2];
  }
};

// Each function does one share of its work; shares of one call write to different places.
template <typename T>
struct Kernels {
  // output [N, Ho, Wo, O] = each pixel's filters applied to its patch of input [N, H, W, C], for the positions that come
  // as `begin` and up to `end` in the order.
  void (*forward)(const Problem&, const Order&, const T* input, const T* filters, T* output, int64_t begin,
                  int64_t end);

  // For one image's positions in rows [first_row, last_row): the response of the bank that the order gives each, at
  // channel response.rank; or with `others` that of all banks but this one, each at its own channel.
  void (*responses)(const Problem&, const Order&, bool others, const T* input, const T* filters, const T* grad_output,
                    const Response<T>& response, int64_t image, int64_t first_row, int64_t last_row);

  // For the same positions: each pixel's own filters' transpose applied to grad_output, added to grad_input
  // [N, H, W, C], which points to the image's rows from `input_row` on; and the response of these filters. Either may
  // be null.
  void (*transposed)(const Problem&, const Order&, const T* input, const T* filters, const T* grad_output,
                     T* grad_input, int64_t input_row, const Response<T>* response, int64_t image, int64_t first_row,
                     int64_t last_row);

  // The gradient of one bank's filters for one group of channels, in the strides of the filters: all of the share of
  // its rows is written.
  void (*filter_gradient)(const Problem&, const Order&, const T* input, const T* grad_output, T* grad_filters,
                          int64_t bank, int64_t group, Share);

  // The same for depthwise convolutions (groups == C == O), with the region of each position in place of an order.
  void (*depthwise_forward)(const Problem&, const int32_t* regions, const T* input, const T* filters, T* output,
                            int64_t image, int64_t first_row, int64_t last_row);
  // Rows [first_row, last_row) of one image's grad_input: all of them are written.
  void (*depthwise_grad_input)(const Problem&, const int32_t* regions, const T* filters, const T* grad_output,
                               T* grad_input, int64_t image, int64_t first_row, int64_t last_row);
  // One image's rows: the response of candidates [N, count, Ho, Wo], or where null of all m banks; and grad_filters
  // [m, kh, kw, C], added to. Either may be null.
  void (*depthwise_rest)(const Problem&, const int32_t* regions, const int32_t* candidates, int64_t ranks,
                         const T* input, const T* filters, const T* grad_output, T* grad_filters,
                         const Response<T>* response, int64_t image, int64_t first_row, int64_t last_row);

  // The lowest region with the highest score, of `count` positions; NaN is above all numbers.
  void (*region_map)(const T* guide, int64_t region_stride, int64_t position_stride, int64_t num_regions,
                     int64_t count, int32_t* regions);

  // to[column * to_row + row] = from[row * from_row + column].
  void (*transpose_rows)(const T* from, int64_t from_row, int64_t rows, int64_t columns, T* to, int64_t to_row);
};

#define DRCONV_DECLARE(CAPABILITY)            \
  namespace CAPABILITY {                      \
  extern const Kernels<float> float_kernels;  \
  extern const Kernels<double> double_kernels; \
  }
DRCONV_DECLARE(avx512)
DRCONV_DECLARE(avx2)
DRCONV_DECLARE(portable)
#undef DRCONV_DECLARE

}  // namespace drconv
