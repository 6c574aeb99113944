// The backend `cpu`: sorts positions by region, shares the work among PyTorch's threads, and calls the kernels of the
// best capability that the processor has.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <string>
#include <vector>

#include "kernels.h"

namespace drconv {
namespace {

constexpr const char* kVariable = "DRCONV_MM_CPU_CAPABILITY";

bool has(const std::string& capability) {
#if defined(__x86_64__)
  if (capability == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (capability == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return capability == "portable";
}

// The kernels of one capability.
struct Capability {
  const char* name;
  const Kernels<float>& of_float;
  const Kernels<double>& of_double;
};

const Capability kCapabilities[] = {  // the best first
#if defined(__x86_64__)
    {"avx512", avx512::float_kernels, avx512::double_kernels},
    {"avx2", avx2::float_kernels, avx2::double_kernels},
#endif
    {"portable", portable::float_kernels, portable::double_kernels},
};

// Reads the environment: once for each call of the operator, and not while threads work.
const Capability& capability() {
  const char* asked = std::getenv(kVariable);
  const std::string name = asked ? asked : "";
  TORCH_CHECK_VALUE(name.empty() || name == "avx512" || name == "avx2" || name == "portable", kVariable, "='", name,
                    "' is not known; choose one of avx512, avx2, portable");
  TORCH_CHECK(name.empty() || has(name), kVariable, "=", name, ": this processor does not have it; leave it out");
  return *std::find_if(std::begin(kCapabilities), std::end(kCapabilities), [&](const Capability& one) {
    return name.empty() ? has(one.name) : name == one.name;
  });
}

void set_filter_strides(Problem& p, const at::Tensor& filters) {
  for (int i = 0; i < 6; ++i) p.filter_stride[i] = filters.stride(i);
}

Problem problem(const at::Tensor& input, const at::Tensor& filters, const at::Tensor& guide, at::IntArrayRef stride,
                at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  Problem p;
  p.batch = input.size(0), p.channels = input.size(1), p.height = input.size(2), p.width = input.size(3);
  p.regions = filters.size(1), p.out_channels = filters.size(2), p.groups = groups;
  p.out_height = guide.size(2), p.out_width = guide.size(3);
  for (int i = 0; i < 2; ++i) {
    p.kernel[i] = filters.size(4 + i);
    p.stride[i] = stride[i], p.padding[i] = padding[i], p.dilation[i] = dilation[i];
  }
  p.shared = filters.size(0) == 1;
  set_filter_strides(p, filters);
  TORCH_CHECK(p.batch * p.positions() < (int64_t(1) << 31), "the batch has too many output positions for this backend");
  return p;
}

bool is_depthwise(const Problem& p) { return p.groups > 1 && p.group_channels() == 1 && p.group_outputs() == 1; }

// Half precision is computed in single: sums of many products need it.
at::ScalarType working_type(const at::Tensor& input) {
  return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor zeros(const at::Tensor& like, at::IntArrayRef sizes) {
  return at::zeros(sizes, like.options().memory_format(at::MemoryFormat::Contiguous));
}

at::Tensor empty_rows(const at::Tensor& like, at::IntArrayRef sizes) {
  return at::empty(sizes, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

template <typename F>
void parallel(int64_t tasks, const F& function) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) function(task);
  });
}

// Tasks of different size: a thread that is done takes the next one.
template <typename F>
void share_out(int64_t threads, int64_t tasks, const F& function) {
  std::atomic<int64_t> next{0};
  parallel(std::min(threads, tasks), [&](int64_t) {
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) function(task);
  });
}

// Positions that are copied or compared together: a piece of work that is worth a thread.
constexpr int64_t kPiece = 512;

// [images][rows][columns] to [images][columns][rows].
template <typename T>
void transpose_images(const Kernels<T>& k, const T* from, int64_t images, int64_t rows, int64_t columns, T* to) {
  const int64_t pieces = (std::max(rows, columns) + kPiece - 1) / kPiece;
  const bool along = columns >= rows;
  const auto piece = [&](int64_t i) {
    const int64_t image = i / pieces, part = i % pieces, longest = along ? columns : rows;
    const int64_t begin = longest * part / pieces, count = longest * (part + 1) / pieces - begin;
    const T* at = from + image * rows * columns;
    T* there = to + image * rows * columns;
    if (along) k.transpose_rows(at + begin, columns, rows, count, there + begin * rows, rows);
    else k.transpose_rows(at + begin * columns, columns, count, columns, there + begin, rows);
  };
  const int64_t grain = std::max<int64_t>(1, 32768 * pieces / std::max<int64_t>(1, rows * columns));
  at::parallel_for(0, images * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) piece(i);
  });
}

template <typename T>
void transpose_into(const Kernels<T>& k, const at::Tensor& from, int64_t rows, int64_t columns, at::Tensor& to) {
  transpose_images(k, from.data_ptr<T>(), from.size(0), rows, columns, to.data_ptr<T>());
}

bool is_rows(const at::Tensor& images) { return images.is_contiguous(at::MemoryFormat::ChannelsLast); }

// Images as rows of pixels, in single or double precision.
at::Tensor pixel_rows(const Capability& cpu, const at::Tensor& images, at::ScalarType type) {
  const at::Tensor typed = images.to(type);
  if (is_rows(typed)) return typed;
  const at::Tensor from = typed.contiguous();
  at::Tensor to = empty_rows(from, from.sizes());
  const int64_t channels = from.size(1), positions = from.size(2) * from.size(3);
  if (type == at::kDouble) transpose_into(cpu.of_double, from, channels, positions, to);
  else transpose_into(cpu.of_float, from, channels, positions, to);
  return to;
}

// The other way round, where `like` does not lie as rows; in its dtype.
at::Tensor laid_out_as(const Capability& cpu, const at::Tensor& like, const at::Tensor& rows) {
  const at::Tensor typed = rows.to(like.scalar_type());
  if (is_rows(like) && !like.is_contiguous()) return typed;
  if (typed.is_contiguous() || rows.scalar_type() != like.scalar_type()) return typed.contiguous();
  at::Tensor to = at::empty(rows.sizes(), rows.options().memory_format(at::MemoryFormat::Contiguous));
  const int64_t channels = rows.size(1), positions = rows.size(2) * rows.size(3);
  if (rows.scalar_type() == at::kDouble) transpose_into(cpu.of_double, rows, positions, channels, to);
  else transpose_into(cpu.of_float, rows, positions, channels, to);
  return to;
}

template <typename T>
void compare_scores(const Kernels<T>& k, const at::Tensor& guide, at::Tensor& regions) {
  const int64_t num_regions = guide.size(1), positions = guide.size(2) * guide.size(3);
  const bool rows = is_rows(guide);
  const T* scores = guide.data_ptr<T>();
  int32_t* to = regions.data_ptr<int32_t>();
  const int64_t pieces = (positions + kPiece - 1) / kPiece, grain = std::max<int64_t>(1, 65536 / (kPiece * num_regions));
  at::parallel_for(0, guide.size(0) * pieces, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = i / pieces, begin = positions * (i % pieces) / pieces;
      const int64_t count = positions * (i % pieces + 1) / pieces - begin;
      k.region_map(scores + image * num_regions * positions + begin * (rows ? num_regions : 1), rows ? 1 : positions,
                   rows ? num_regions : 1, num_regions, count, to + image * positions + begin);
    }
  });
}

// The region [N, Ho, Wo] of each pixel of a guide [N, m, Ho, Wo]: the lowest with the highest score.
at::Tensor region_map(const Capability& cpu, const at::Tensor& guide) {
  at::Tensor scores = guide.to(working_type(guide));
  if (!is_rows(scores)) scores = scores.contiguous();
  at::Tensor regions = at::empty({guide.size(0), guide.size(2), guide.size(3)}, guide.options().dtype(at::kInt));
  if (scores.scalar_type() == at::kDouble) compare_scores(cpu.of_double, scores, regions);
  else compare_scores(cpu.of_float, scores, regions);
  return regions;
}

// Threads that a piece of work is worth.
int64_t share_count(double multiply_adds) {
  return std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), int64_t(multiply_adds / (1 << 17))));
}

double convolution(const Problem& p) {
  return double(p.batch) * p.positions() * p.out_channels * p.group_channels() * p.taps();
}

struct Sorted {
  std::vector<int32_t> positions;
  std::vector<int64_t> offsets;
  Order order() const { return {positions.data(), offsets.data()}; }
};

// A counting sort, image by image; `regions` of an image begin every `image_stride` numbers.
Sorted sort_positions(const Problem& p, const int32_t* regions, int64_t image_stride) {
  Sorted sorted;
  sorted.positions.resize(p.batch * p.positions());
  sorted.offsets.assign(p.banks() + 1, 0);
  std::vector<int64_t> next(p.batch * p.regions, 0);
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, p.positions()));
  at::parallel_for(0, p.batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image)
      for (int64_t i = 0; i < p.positions(); ++i) ++next[image * p.regions + regions[image * image_stride + i]];
  });
  int64_t total = 0;
  const int64_t outer = p.shared ? 1 : p.batch, inner = p.shared ? p.batch : 1;
  for (int64_t image = 0; image < outer; ++image)
    for (int64_t region = 0; region < p.regions; ++region) {
      for (int64_t other = 0; other < inner; ++other) {
        int64_t& count = next[(image + other) * p.regions + region];
        const int64_t here = count;
        count = total;
        total += here;
      }
      sorted.offsets[p.bank(image, region) + 1] = total;
    }
  at::parallel_for(0, p.batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image)
      for (int64_t i = 0; i < p.positions(); ++i)
        sorted.positions[next[image * p.regions + regions[image * image_stride + i]]++] =
            int32_t(image * p.positions() + i);
  });
  return sorted;
}

// Images cut into strips of output rows where there are not enough images for all threads.
struct Strips {
  Strips(const Problem& p, int64_t threads) : p(p), per_image(1) {
    if (p.batch % threads) per_image = std::min(threads, p.out_height);
  }
  int64_t count() const { return p.batch * per_image; }
  int64_t image(int64_t strip) const { return strip / per_image; }
  int64_t first_row(int64_t strip) const { return p.out_height * (strip % per_image) / per_image; }
  int64_t last_row(int64_t strip) const { return p.out_height * (strip % per_image + 1) / per_image; }
  // The rows of the input under a strip.
  int64_t first_input_row(int64_t strip) const {
    return std::clamp<int64_t>(first_row(strip) * p.stride[0] - p.padding[0], 0, p.height);
  }
  int64_t last_input_row(int64_t strip) const {
    const int64_t reach = (last_row(strip) - 1) * p.stride[0] - p.padding[0] + (p.kernel[0] - 1) * p.dilation[0] + 1;
    return std::clamp<int64_t>(reach, first_input_row(strip), p.height);
  }
  const Problem& p;
  int64_t per_image;
};

template <typename T>
void forward_rows(const Kernels<T>& k, const Problem& p, const T* x, const T* w, const int32_t* map, T* y) {
  const int64_t threads = share_count(convolution(p)), total = p.batch * p.positions();
  if (is_depthwise(p)) {
    const Strips strips(p, threads);
    parallel(strips.count(), [&](int64_t strip) {
      k.depthwise_forward(p, map, x, w, y, strips.image(strip), strips.first_row(strip), strips.last_row(strip));
    });
    return;
  }
  const Sorted sorted = sort_positions(p, map, p.positions());
  parallel(threads, [&](int64_t i) {
    k.forward(p, sorted.order(), x, w, y, total * i / threads, total * (i + 1) / threads);
  });
}

// Images that are small are laid out as rows one by one, in memory that stays in a thread's cache.
constexpr int64_t kImageBytes = int64_t(4) << 20;

template <typename T>
bool image_by_image(const Problem& p) {
  const int64_t numbers = p.channels * p.height * p.width + p.out_channels * p.positions();
  const int64_t threads = share_count(convolution(p));
  return !p.shared && numbers * int64_t(sizeof(T)) <= kImageBytes && (p.batch % threads == 0 || p.batch >= 4 * threads);
}

template <typename T>
void forward_images(const Kernels<T>& k, const Problem& p, const T* x, const T* w, const int32_t* map, T* y) {
  const int64_t in = p.channels * p.height * p.width, out = p.out_channels * p.positions();
  const Sorted sorted = is_depthwise(p) ? Sorted{} : sort_positions(p, map, p.positions());
  const int64_t threads = share_count(convolution(p));
  parallel(threads, [&](int64_t i) {
    static thread_local std::vector<T> memory;
    memory.resize(std::max<size_t>(memory.size(), in + out));
    for (int64_t image = p.batch * i / threads; image < p.batch * (i + 1) / threads; ++image) {
      k.transpose_rows(x + image * in, p.height * p.width, p.channels, p.height * p.width, memory.data(), p.channels);
      // The kernels count from the batch's first image.
      const T* from = memory.data() - image * in;
      T* to = memory.data() + in - image * out;
      if (is_depthwise(p)) k.depthwise_forward(p, map, from, w, to, image, 0, p.out_height);
      else k.forward(p, sorted.order(), from, w, to, image * p.positions(), (image + 1) * p.positions());
      k.transpose_rows(memory.data() + in, p.out_channels, p.positions(), p.out_channels, y + image * out,
                       p.positions());
    }
  });
}

template <typename T>
at::Tensor run_forward(const Capability& cpu, const Kernels<T>& k, const Problem& p, const at::Tensor& input,
                       const at::Tensor& filters, const at::Tensor& regions) {
  const std::array<int64_t, 4> sizes{p.batch, p.out_channels, p.out_height, p.out_width};
  const T* w = filters.data_ptr<T>();
  const int32_t* map = regions.data_ptr<int32_t>();
  if (input.numel() && input.is_contiguous() && !is_rows(input) && image_by_image<T>(p)) {
    at::Tensor output = at::empty(sizes, input.options());
    forward_images<T>(k, p, input.data_ptr<T>(), w, map, output.data_ptr<T>());
    return output;
  }
  const at::Tensor rows = pixel_rows(cpu, input, input.scalar_type());
  at::Tensor output = empty_rows(rows, sizes);
  if (output.numel()) forward_rows<T>(k, p, rows.data_ptr<T>(), w, map, output.data_ptr<T>());
  return output;
}

at::Tensor forward(const at::Tensor& input, const at::Tensor& filters, const at::Tensor& guide, at::IntArrayRef stride,
                   at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const Capability& cpu = capability();
  const at::ScalarType type = working_type(input);
  const at::Tensor x = input.to(type), w = filters.to(type), map = region_map(cpu, guide);
  const Problem p = problem(x, w, guide, stride, padding, dilation, groups);
  return laid_out_as(cpu, input, type == at::kDouble ? run_forward(cpu, cpu.of_double, p, x, w, map)
                                                     : run_forward(cpu, cpu.of_float, p, x, w, map));
}

template <typename T>
Response<T> response_of(const at::Tensor& response, int64_t rank) {
  // Rows and columns of a response are at one distance, by the way it was made.
  return {response.data_ptr<T>(), {response.stride(0), response.stride(1), response.stride(3)}, rank};
}

template <typename T>
void input_gradient(const Kernels<T>& k, const Problem& p, const Sorted& sorted, const at::Tensor& grad_output,
                    const at::Tensor& input, const at::Tensor& filters, at::Tensor& grad_input,
                    const Response<T>* response) {
  const int64_t threads = share_count(convolution(p));
  const Strips strips(p, threads);
  const bool apart = (p.kernel[0] - 1) * p.dilation[0] < p.stride[0];
  const int64_t row = p.width * p.channels;
  T* gx = grad_input.defined() ? grad_input.data_ptr<T>() : nullptr;
  // Strips whose windows overlap add to the same rows: each gets its own, and they are summed in a fixed order.
  const bool own = gx && strips.per_image > 1 && !apart;
  std::vector<at::Tensor> parts(own ? strips.count() : 0);
  const bool strip_by_strip = !own && strips.per_image == 1;
  if (gx && !own && !strip_by_strip) grad_input.zero_();
  parallel(strips.count(), [&](int64_t strip) {
    const int64_t image = strips.image(strip);
    int64_t input_row = 0;
    T* to = gx ? gx + image * p.height * row : nullptr;
    if (own) {
      input_row = strips.first_input_row(strip);
      parts[strip] = zeros(input, {strips.last_input_row(strip) - input_row, row});
      to = parts[strip].data_ptr<T>();
    } else if (gx && strip_by_strip) {
      std::fill(to, to + p.height * row, T(0));
    }
    k.transposed(p, sorted.order(), input.data_ptr<T>(), filters.data_ptr<T>(), grad_output.data_ptr<T>(), to,
                 input_row, response, image, strips.first_row(strip), strips.last_row(strip));
  });
  if (!own) return;
  parallel(p.batch * p.height, [&](int64_t i) {
    T* to = gx + i * row;
    std::fill(to, to + row, T(0));
    for (int64_t strip = i / p.height * strips.per_image; strip < (i / p.height + 1) * strips.per_image; ++strip) {
      const int64_t first = strips.first_input_row(strip), y = i % p.height;
      if (y < first || y >= strips.last_input_row(strip)) continue;
      const T* from = parts[strip].data_ptr<T>() + (y - first) * row;
      for (int64_t c = 0; c < row; ++c) to[c] += from[c];
    }
  });
}

// The response of banks that the positions do not have for their own: of the candidates from the second on, or of all.
template <typename T>
void other_responses(const Kernels<T>& k, const Problem& p, const Sorted& sorted, const at::Tensor& grad_output,
                     const at::Tensor& input, const at::Tensor& filters, const at::Tensor& candidates,
                     const at::Tensor& response) {
  const auto respond = [&](const Sorted& order, bool others, int64_t rank) {
    const int64_t threads = share_count(convolution(p) * (others ? p.regions : 1));
    const Response<T> to = response_of<T>(response, rank);
    const Strips strips(p, threads);
    share_out(threads, strips.count(), [&](int64_t strip) {
      k.responses(p, order.order(), others, input.data_ptr<T>(), filters.data_ptr<T>(), grad_output.data_ptr<T>(), to,
                  strips.image(strip), strips.first_row(strip), strips.last_row(strip));
    });
  };
  if (!candidates.defined()) {
    respond(sorted, true, -1);
    return;
  }
  const int64_t ranks = candidates.size(1);
  for (int64_t rank = 1; rank < ranks; ++rank)
    respond(sort_positions(p, candidates.data_ptr<int32_t>() + rank * p.positions(), ranks * p.positions()), false,
            rank);
}

template <typename T>
void depthwise_gradients(const Kernels<T>& k, const Problem& p, const at::Tensor& grad_output, const at::Tensor& input,
                         const at::Tensor& filters, const at::Tensor& regions, const at::Tensor& candidates,
                         at::Tensor& grad_input, at::Tensor& grad_filters, at::Tensor& response) {
  const T *gy = grad_output.data_ptr<T>(), *x = input.data_ptr<T>(), *w = filters.data_ptr<T>();
  const int32_t* map = regions.data_ptr<int32_t>();
  const int32_t* some = candidates.defined() ? candidates.data_ptr<int32_t>() : nullptr;
  const int64_t ranks = candidates.defined() ? candidates.size(1) : 0, threads = share_count(convolution(p));
  if (grad_input.defined()) {
    const int64_t per_image = p.batch % threads ? std::min(threads, p.height) : 1;
    parallel(p.batch * per_image, [&](int64_t i) {
      const int64_t part = i % per_image;
      k.depthwise_grad_input(p, map, w, gy, grad_input.data_ptr<T>(), i / per_image, p.height * part / per_image,
                             p.height * (part + 1) / per_image);
    });
  }
  if (!grad_filters.defined() && !response.defined()) return;
  const Strips strips(p, threads);
  const Response<T> to = response.defined() ? response_of<T>(response, -1) : Response<T>{};
  // Filters' gradients of a thread where filters are shared, else of a strip: summed afterwards.
  const int64_t parts = p.shared ? threads : strips.count(), numbers = p.regions * p.taps() * p.channels;
  at::Tensor sums;
  if (grad_filters.defined())
    sums = zeros(input, {parts, numbers});
  parallel(threads, [&](int64_t thread) {
    for (int64_t strip = strips.count() * thread / threads; strip < strips.count() * (thread + 1) / threads; ++strip)
      k.depthwise_rest(p, map, some, ranks, x, w, gy,
                       sums.defined() ? sums.data_ptr<T>() + (p.shared ? thread : strip) * numbers : nullptr,
                       response.defined() ? &to : nullptr, strips.image(strip),
                       strips.first_row(strip), strips.last_row(strip));
  });
  if (grad_filters.defined()) {
    const int64_t images = p.shared ? 1 : p.batch;
    const at::Tensor total = sums.view({images, -1, p.regions, p.kernel[0], p.kernel[1], p.channels}).sum(1);
    grad_filters.copy_(total.permute({0, 1, 4, 2, 3}).unsqueeze(3));
  }
}

template <typename T>
void run_backward(const Kernels<T>& k, Problem p, const at::Tensor& grad_output, const at::Tensor& input,
                  const at::Tensor& filters, const at::Tensor& regions, const at::Tensor& candidates,
                  at::Tensor& grad_input, at::Tensor& grad_filters, at::Tensor& response) {
  if (is_depthwise(p)) {
    depthwise_gradients<T>(k, p, grad_output, input, filters, regions, candidates, grad_input, grad_filters, response);
    return;
  }
  const Sorted sorted = sort_positions(p, regions.data_ptr<int32_t>(), p.positions());
  if (grad_input.defined() || response.defined()) {
    // A pixel's own response comes with grad_input: the filters' transpose is there.
    const Response<T> own = response.defined() ? response_of<T>(response, candidates.defined() ? 0 : -1) : Response<T>{};
    input_gradient<T>(k, p, sorted, grad_output, input, filters, grad_input, response.defined() ? &own : nullptr);
  }
  if (response.defined()) other_responses<T>(k, p, sorted, grad_output, input, filters, candidates, response);
  if (grad_filters.defined()) {
    set_filter_strides(p, grad_filters);
    const int64_t threads = share_count(convolution(p));
    // A bank with many of the positions is cut into parts of its rows, so that threads find enough to share.
    int64_t largest = 0;
    for (int64_t bank = 0; bank < p.banks(); ++bank)
      largest = std::max(largest, sorted.offsets[bank + 1] - sorted.offsets[bank]);
    const int64_t fair = std::max<int64_t>(1, p.batch * p.positions() / (2 * threads));
    const int64_t parts = threads == 1 ? 1 : std::clamp<int64_t>(largest / fair, 1, std::max<int64_t>(1, p.group_channels() / 24));
    share_out(threads, p.banks() * p.groups * parts, [&](int64_t i) {
      k.filter_gradient(p, sorted.order(), input.data_ptr<T>(), grad_output.data_ptr<T>(), grad_filters.data_ptr<T>(),
                        i / parts / p.groups, i / parts % p.groups, Share{i % parts, parts});
    });
  }
}

std::vector<at::Tensor> backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& filters,
                                 const at::Tensor& guide, at::IntArrayRef stride, at::IntArrayRef padding,
                                 at::IntArrayRef dilation, int64_t groups, bool want_input,
                                 bool want_filters, bool want_response,
                                 const std::optional<at::Tensor>& candidates) {
  const Capability& cpu = capability();
  const at::ScalarType type = working_type(input);
  const at::Tensor x = pixel_rows(cpu, input, type), gy = pixel_rows(cpu, grad_output, type), w = filters.to(type);
  const at::Tensor map = region_map(cpu, guide);
  const at::Tensor some = candidates ? candidates->to(at::kInt).contiguous() : at::Tensor();
  const Problem p = problem(x, w, guide, stride, padding, dilation, groups);
  at::Tensor grad_input, grad_filters, response;
  if (want_input) grad_input = empty_rows(x, input.sizes());
  if (want_filters) grad_filters = at::empty_like(w);
  if (want_response)  // laid out as the guide, with which it is combined next
    response = at::empty({p.batch, some.defined() ? some.size(1) : p.regions, p.out_height, p.out_width},
                         x.options().memory_format(is_rows(guide) ? at::MemoryFormat::ChannelsLast
                                                                  : at::MemoryFormat::Contiguous));
  if (type == at::kDouble) run_backward(cpu.of_double, p, gy, x, w, map, some, grad_input, grad_filters, response);
  else run_backward(cpu.of_float, p, gy, x, w, map, some, grad_input, grad_filters, response);
  std::vector<at::Tensor> results;
  if (want_input) results.push_back(laid_out_as(cpu, input, grad_input));
  if (want_filters) results.push_back(grad_filters.to(filters.scalar_type()));
  if (want_response) results.push_back(response);
  return results;
}

}  // namespace
}  // namespace drconv

TORCH_LIBRARY(drconv_mm_cpu, library) {
  library.def("capability() -> str", [] { return std::string(drconv::capability().name); });
  library.def(
      "forward(Tensor input, Tensor filters, Tensor guide, int[] stride, int[] padding, int[] dilation, int groups)"
      " -> Tensor",
      drconv::forward);
  library.def(
      "backward(Tensor grad_output, Tensor input, Tensor filters, Tensor guide, int[] stride, int[] padding,"
      " int[] dilation, int groups, bool want_input, bool want_filters, bool want_response, Tensor? candidates) -> Tensor[]",
      drconv::backward);
}
