// The host side of the re-ranking operators; reference.py specifies them.
#include "cuda/k_reciprocal.cuh"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "cuda/host.h"
#include "jaccard.h"

namespace mmga {
namespace {

constexpr int64_t kTableBytes = int64_t{1} << 30;  // of all tables together
// 16 a multiprocessor of the largest card: more tables cost more time to clear than they save.
constexpr int64_t kMostWarps = 2112;
constexpr int64_t kWarpsOfBlock = 4;

// Tables for as many warps as rows, room and the card have use for.
class Tables {
 public:
  Tables(const Tensor& like, int64_t rows, int64_t columns, bool with_sums)
      : warps_(warps_for(rows, table_bytes(columns, with_sums))),
        memory_(torch::stable::new_zeros(like, {warps_ * table_bytes(columns, with_sums) / 8},
                                         ScalarType::Long)) {}
  Scratch scratch() { return {static_cast<uint64_t*>(memory_.mutable_data_ptr()), warps_}; }

 private:
  static int64_t warps_for(int64_t rows, int64_t bytes) {
    const int64_t wanted = std::min({rows, kMostWarps, kTableBytes / std::max<int64_t>(1, bytes)});
    return (std::max<int64_t>(1, wanted) + kWarpsOfBlock - 1) / kWarpsOfBlock * kWarpsOfBlock;
  }

  int64_t warps_;
  Tensor memory_;
};

struct Rows {
  Tensor offsets, columns, values;
};

// Makes rows whose lengths `run` finds in a first launch.
template <typename Run>
Rows make_rows(const Device& device, const Tensor& like, int64_t rows, bool with_values,
               const Run& run) {
  Tensor offsets = torch::stable::new_empty(like, {rows + 1}, ScalarType::Long);
  auto* lengths = output<int64_t>(offsets);
  STD_CUDA_CHECK(run(RowsOut{lengths, nullptr, nullptr, nullptr}));
  STD_CUDA_CHECK(launch_offsets(lengths, rows, device.stream()));
  const int64_t total = device.read(lengths + rows);
  Tensor columns = torch::stable::new_empty(like, {total}, ScalarType::Int);
  Tensor values =
      torch::stable::new_empty(like, {with_values ? total : int64_t{0}}, ScalarType::Double);
  if (total > 0) {
    STD_CUDA_CHECK(run(RowsOut{nullptr, lengths, output<int32_t>(columns),
                               with_values ? output<double>(values) : nullptr}));
  }
  return {offsets, columns, values};
}

int64_t check_sets(const Tensor& offsets, const Tensor& columns) {
  STD_TORCH_CHECK(offsets.dim() == 1 && offsets.numel() >= 1, "offsets must be [N + 1]");
  check(offsets, ScalarType::Long, -1, "offsets");
  check(columns, ScalarType::Int, -1, "columns");
  return offsets.numel() - 1;
}

int64_t check_weighted(const Tensor& offsets, const Tensor& columns, const Tensor& values) {
  check(values, ScalarType::Double, columns.numel(), "values");
  return check_sets(offsets, columns);
}

void check_neighbours(const Tensor& neighbours, int64_t n, int64_t k) {
  check_rows(neighbours, ScalarType::Int, n, -1, "neighbours");
  check(neighbours, ScalarType::Int, -1, "neighbours");
  STD_TORCH_CHECK(k >= 1 && k <= neighbours.size(1), "k must be from 1 to the neighbours given");
}

Csr csr(const Tensor& offsets, const Tensor& columns) {
  return {input<int64_t>(offsets), input<int32_t>(columns), nullptr};
}
Csr csr(const Tensor& offsets, const Tensor& columns, const Tensor& values) {
  return {input<int64_t>(offsets), input<int32_t>(columns), input<double>(values)};
}

std::tuple<Tensor, Tensor> reciprocal_sets(Tensor neighbours, int64_t k) {
  check_neighbours(neighbours, -1, k);
  const int64_t n = neighbours.size(0);
  const Device device(neighbours);
  Tables tables(neighbours, n, n, false);
  const Rows made = make_rows(device, neighbours, n, false, [&](const RowsOut& out) {
    return launch_reciprocal_sets(input<int32_t>(neighbours), neighbours.size(1), n, k, out,
                                  tables.scratch(), device.stream());
  });
  return {made.offsets, made.columns};
}

std::tuple<Tensor, Tensor> expand_sets(Tensor offsets, Tensor columns, Tensor half_offsets,
                                       Tensor half_columns) {
  const int64_t n = check_sets(offsets, columns);
  STD_TORCH_CHECK(check_sets(half_offsets, half_columns) == n,
                  "expand_sets: both must have as many rows");
  const Device device(offsets);
  Tables tables(offsets, n, n, false);
  const Rows made = make_rows(device, offsets, n, false, [&](const RowsOut& out) {
    return launch_expand_sets(csr(offsets, columns), csr(half_offsets, half_columns), n, out,
                              tables.scratch(), device.stream());
  });
  return {made.offsets, made.columns};
}

Tensor listed_distances(Tensor offsets, Tensor columns, Tensor neighbours, Tensor distances) {
  const int64_t n = check_sets(offsets, columns);
  check_neighbours(neighbours, n, 1);
  check_floating(distances, "distances");
  check(distances, distances.scalar_type(), neighbours.numel(), "distances");
  const Device device(offsets);
  Tensor result = torch::stable::new_empty(distances, {columns.numel()}, ScalarType::Double);
  const auto run = [&](auto value) {
    using T = decltype(value);
    STD_CUDA_CHECK(launch_listed_distances(csr(offsets, columns), n, input<int32_t>(neighbours),
                                           input<T>(distances), neighbours.size(1),
                                           output<double>(result), device.stream()));
  };
  distances.scalar_type() == ScalarType::Float ? run(0.0F) : run(0.0);
  return result;
}

Tensor encode(Tensor offsets, Tensor distances, std::optional<Tensor> maxima) {
  check(offsets, ScalarType::Long, -1, "offsets");
  const int64_t n = offsets.numel() - 1;
  STD_TORCH_CHECK(n >= 0, "offsets must be [N + 1]");
  check(distances, ScalarType::Double, -1, "distances");
  if (maxima.has_value()) check(*maxima, ScalarType::Double, n, "maxima");
  const Device device(offsets);
  Tensor weights = torch::stable::empty_like(distances);
  STD_CUDA_CHECK(launch_encode(input<int64_t>(offsets), n, input<double>(distances),
                               input<double>(maxima), output<double>(weights), device.stream()));
  return weights;
}

std::tuple<Tensor, Tensor, Tensor> average_rows(Tensor offsets, Tensor columns, Tensor values,
                                                Tensor neighbours, int64_t k2) {
  const int64_t n = check_weighted(offsets, columns, values);
  check_neighbours(neighbours, n, k2);
  const Device device(offsets);
  Tables tables(offsets, n, n, true);
  const Rows made = make_rows(device, offsets, n, true, [&](const RowsOut& out) {
    return launch_average_rows(csr(offsets, columns, values), n, input<int32_t>(neighbours),
                               neighbours.size(1), k2, out, tables.scratch(), device.stream());
  });
  return {made.offsets, made.columns, made.values};
}

std::tuple<Tensor, Tensor, Tensor> transpose_rows(Tensor offsets, Tensor columns, Tensor values,
                                                  int64_t first) {
  const int64_t n = check_weighted(offsets, columns, values);
  STD_TORCH_CHECK(first >= 0 && first <= n, "transpose_rows: first must be from 0 to N");
  const Device device(offsets);
  Tensor inverted = torch::stable::new_zeros(offsets, {n + 1});
  Tensor next = torch::stable::new_zeros(offsets, {n});
  const Csr rows = csr(offsets, columns, values);
  auto* begin_of = output<int64_t>(inverted);
  STD_CUDA_CHECK(launch_count_columns(rows, n, first, begin_of, device.stream()));
  STD_CUDA_CHECK(launch_offsets(begin_of, n, device.stream()));
  const int64_t total = device.read(begin_of + n);
  Tensor loose_rows = torch::stable::new_empty(columns, {total});
  Tensor loose_values = torch::stable::new_empty(values, {total});
  Tensor out_rows = torch::stable::new_empty(columns, {total});
  Tensor out_values = torch::stable::new_empty(values, {total});
  if (total > 0) {
    Tables tables(offsets, n, n, true);
    STD_CUDA_CHECK(launch_transpose_rows(rows, n, first, begin_of, output<int64_t>(next),
                                         output<int32_t>(loose_rows), output<double>(loose_values),
                                         output<int32_t>(out_rows), output<double>(out_values),
                                         tables.scratch(), device.stream()));
  }
  return {inverted, out_rows, out_values};
}

std::tuple<Tensor, Tensor, Tensor> jaccard_rows(Tensor offsets, Tensor columns, Tensor values,
                                                Tensor inverted_offsets, Tensor inverted_rows,
                                                Tensor inverted_values, Tensor rows_of_interest,
                                                std::optional<double> max_distance, bool upper) {
  const int64_t n = check_weighted(offsets, columns, values);
  STD_TORCH_CHECK(check_weighted(inverted_offsets, inverted_rows, inverted_values) == n,
                  "jaccard_rows: the inverted index must have as many columns as V");
  STD_TORCH_CHECK(!max_distance.has_value() || *max_distance < 1.0,
                  "jaccard_rows: max_distance must be below 1");
  check(rows_of_interest, ScalarType::Long, -1, "rows");
  const int64_t count = rows_of_interest.numel();
  const double least = least_overlap(max_distance.value_or(std::nextafter(1.0, 0.0)));
  const Device device(offsets);
  Tables tables(offsets, count, n, true);
  const Rows made = make_rows(device, offsets, count, true, [&](const RowsOut& out) {
    return launch_jaccard_rows(csr(offsets, columns, values),
                               csr(inverted_offsets, inverted_rows, inverted_values), n,
                               input<int64_t>(rows_of_interest), count, least, upper, out,
                               tables.scratch(), device.stream());
  });
  return {made.offsets, made.columns, made.values};
}

Tensor mix_distances(Tensor squared, std::optional<Tensor> maxima, Tensor offsets, Tensor columns,
                     Tensor values, int64_t first, double lambda, int64_t power, double scale) {
  check_rows(squared, -1, -1, "squared");
  check_floating(squared, "squared");
  const int64_t rows = squared.size(0), gallery = squared.size(1);
  STD_TORCH_CHECK(check_weighted(offsets, columns, values) == rows,
                  "mix_distances: rows of distances and overlaps differ");
  if (maxima.has_value()) check(*maxima, ScalarType::Double, rows, "maxima");
  const Device device(squared);
  Tensor result = torch::stable::new_empty(values, {rows, gallery}, ScalarType::Double);
  const auto run = [&](auto value) {
    STD_CUDA_CHECK(launch_mix_distances(
        input<decltype(value)>(squared), squared.stride(0), rows, gallery, input<double>(maxima),
        csr(offsets, columns, values), Mix{first, lambda, power, scale}, output<double>(result),
        device.stream()));
  };
  squared.scalar_type() == ScalarType::Float ? run(0.0F) : run(0.0);
  return result;
}

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) {
  m.impl("reciprocal_sets", TORCH_BOX(&mmga::reciprocal_sets));
  m.impl("expand_sets", TORCH_BOX(&mmga::expand_sets));
  m.impl("listed_distances", TORCH_BOX(&mmga::listed_distances));
  m.impl("encode", TORCH_BOX(&mmga::encode));
  m.impl("average_rows", TORCH_BOX(&mmga::average_rows));
  m.impl("transpose_rows", TORCH_BOX(&mmga::transpose_rows));
  m.impl("jaccard_rows", TORCH_BOX(&mmga::jaccard_rows));
  m.impl("mix_distances", TORCH_BOX(&mmga::mix_distances));
}
