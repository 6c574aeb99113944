// What the binding calls and each CPU capability implements: no torch in here, so that a capability's compiler flags
// can't leak into shared inline functions.
#pragma once

#include <cstdint>

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

  int64_t positions() const { return out_height * out_width; }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t group_channels() const { return channels / groups; }
  int64_t group_outputs() const { return out_channels / groups; }
  int64_t banks() const { return shared ? regions : batch * regions; }
  int64_t bank(int64_t image, int64_t region) const { return shared ? region : image * regions + region; }
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

// Each function does one share of its work; shares of one call write to different places.
template <typename T>
struct Kernels {
  // output [N, Ho, Wo, O] = each pixel's filters applied to its patch of input [N, H, W, C]. All of it is written.
  void (*forward)(const Problem&, const Order&, const T* input, const T* filters, T* output, Share);

  // For the positions of one image in rows [first_row, last_row): the inner products of grad_output with what each
  // candidate bank gives, response [N, count, Ho, Wo]; and, added to grad_input [N, H, W, C], each pixel's own filters'
  // transpose applied to grad_output. Either may be null. `order` has the positions by candidate, one for each of
  // `ranks`; ranks == 0 stands for all m banks at every position, and then `order` is by the chosen bank.
  // grad_input points to the image's rows from `input_row` on.
  void (*transposed)(const Problem&, const Order* order, int64_t ranks, const int64_t* regions, const T* input,
                     const T* filters, const T* grad_output, T* grad_input, int64_t input_row, T* response,
                     int64_t image, int64_t first_row, int64_t last_row);

  // grad_filters, in the strides of the filters: all of it is written.
  void (*filter_gradient)(const Problem&, const Order&, const T* input, const T* grad_output, T* grad_filters, Share);

  // The same for depthwise convolutions (groups == C == O), with the region of each position in place of an order.
  void (*depthwise_forward)(const Problem&, const int64_t* regions, const T* input, const T* filters, T* output,
                            int64_t image, int64_t first_row, int64_t last_row);
  // Rows [first_row, last_row) of one image's grad_input: all of them are written.
  void (*depthwise_grad_input)(const Problem&, const int64_t* regions, const T* filters, const T* grad_output,
                               T* grad_input, int64_t image, int64_t first_row, int64_t last_row);
  // One image's rows: response as above, and grad_filters [m, kh, kw, C], added to. Either may be null. Candidates
  // [N, count, Ho, Wo], or null for all m banks.
  void (*depthwise_rest)(const Problem&, const int64_t* regions, const int64_t* candidates, int64_t ranks,
                         const T* input, const T* filters, const T* grad_output, T* grad_filters, T* response,
                         int64_t image, int64_t first_row, int64_t last_row);
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
