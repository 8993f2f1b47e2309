// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/parameter_set.hpp>

#include <moiety/experts/activation.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory_resource>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

struct spec : mo::layer_spec<mo::dims{.hidden = 3, .ffn = 5, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using experts = mo::mlp<mo::silu>;
  using shared = mo::shared_experts<2, mo::sigmoid_gated, mo::gated_mlp<mo::silu, mo::concatenated, mo::biased>>;
};
using set = mo::detail::parameter_set<spec, float, mo::bf16, true>;

}  // namespace

TEST_CASE("shared experts have tensors of their own, without the axis of experts, and their gate a row") {
  set const all = set::allocate(*std::pmr::new_delete_resource());
  std::vector<std::string> seen;
  all.for_each([&](mo::parameter const& p, auto values) {
    std::string text = p.name + ' ' + std::string(p.type);
    for (auto const extent : p.shape) text += ' ' + std::to_string(extent);
    seen.push_back(text);
    CHECK(values.size() == p.size());
    CHECK(p.part.size() == p.shape.size());
    for (std::size_t axis = 0; axis < p.shape.size(); ++axis) CHECK(p.part[axis].count == p.shape[axis]);
  });
  CHECK(seen == std::vector<std::string>{"router.weight float 4 3", "experts.up bf16 4 5 3", "experts.down bf16 4 3 5",
                                         "shared.gate_up bf16 20 3", "shared.down bf16 3 10",
                                         "shared.gate_up_bias bf16 20", "shared.down_bias bf16 3",
                                         "shared_gate.weight float 1 3"});
  CHECK(all.shared().inputs[1].data == all.shared().inputs[0].data + 10 * 3);
  CHECK(all.shared_gate().cols() == 3);
}

namespace {

struct joined : spec {
  using experts = mo::gated_mlp<mo::silu, mo::interleaved, mo::down_in_by_out>;
  static constexpr mo::dims size{.hidden = 6, .ffn = 6, .experts = 4};
};

using pieces = std::vector<std::pair<std::int64_t, std::int64_t>>;

mo::parameter parameter_of(std::vector<std::int64_t> const& shape, std::vector<mo::range_of> const& part) {
  mo::parameter p{};
  p.shape = shape, p.part = part;
  return p;
}

pieces pieces_of(std::vector<std::int64_t> const& shape, std::vector<mo::range_of> const& part) {
  pieces all;
  parameter_of(shape, part).for_each_piece([&](std::int64_t first, std::int64_t count) {
    all.emplace_back(first, count);
  });
  return all;
}

/// Every element of the part, by its indices.
std::vector<std::int64_t> elements_of(std::vector<std::int64_t> const& shape, std::vector<mo::range_of> const& part) {
  std::vector<std::int64_t> all;
  std::int64_t const whole = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>{});
  for (std::int64_t i = 0; i < whole; ++i) {
    std::int64_t rest = i;
    bool inside = true;
    for (std::size_t axis = shape.size(); axis-- > 0; rest /= shape[axis]) {
      std::int64_t const at = rest % shape[axis];
      inside = inside && at >= part[axis].first && at < part[axis].first + part[axis].count;
    }
    if (inside) all.push_back(i);
  }
  return all;
}

}  // namespace

TEST_CASE("pieces are the elements of the part, in order, and as long as they can be") {
  std::vector<std::int64_t> const shape{3, 4, 2};
  for (std::int64_t code = 0; code < 6 * 10 * 3; ++code) {
    // Every range of each axis that is not empty.
    auto const range = [](std::int64_t which, std::int64_t extent) {
      for (std::int64_t first = 0; first < extent; ++first)
        for (std::int64_t count = 1; first + count <= extent; ++count)
          if (which-- == 0) return mo::range_of{first, count};
      return mo::range_of{0, extent};
    };
    std::vector<mo::range_of> const part{range(code % 6, 3), range(code / 6 % 10, 4), range(code / 60, 2)};
    std::vector<std::int64_t> seen;
    std::int64_t end = -1;
    bool const outer_whole = part[1].count == 4 && part[2].count == 2;
    for (auto const& [first, count] : pieces_of(shape, part)) {
      if (outer_whole) CHECK(end == -1);
      if (part[2].count < 2) CHECK(count == part[2].count);
      end = first + count;
      for (std::int64_t i = 0; i < count; ++i) seen.push_back(first + i);
    }
    CHECK(seen == elements_of(shape, part));
    CHECK(seen.size() == parameter_of(shape, part).size());
  }
}

TEST_CASE("a tensor that is here whole is one piece, and one of no elements has none") {
  CHECK(pieces_of({3, 4, 2}, {{0, 3}, {0, 4}, {0, 2}}) == pieces{{0, 24}});
  CHECK(pieces_of({7}, {{2, 3}}) == pieces{{2, 3}});
  for (std::size_t empty = 0; empty < 3; ++empty) {
    std::vector<mo::range_of> part{{1, 2}, {0, 4}, {0, 1}};
    part[empty] = {1, 0};
    CHECK(pieces_of({3, 4, 2}, part).empty());
  }
  CHECK(pieces_of({3, 0, 2}, {{0, 3}, {0, 0}, {0, 2}}).empty());
  std::int64_t const large = std::int64_t{1} << 20;
  CHECK(pieces_of({large, large, 3}, {{large - 1, 1}, {large - 2, 2}, {0, 3}}) == pieces{{3 * (large * large - 2), 6}});
}

TEST_CASE("a share of experts and units takes its part of each tensor of experts, and all of the others") {
  using joined_set = mo::detail::parameter_set<joined, float, float, true>;
  joined_set const part = joined_set::allocate(*std::pmr::new_delete_resource(), {{2, 2}, {4, 2}});
  std::vector<std::string> seen;
  part.for_each([&](mo::parameter const& p, auto values) {
    CHECK(values.size() == p.size());
    if (!p.of_experts) {
      for (std::size_t axis = 0; axis < p.shape.size(); ++axis) CHECK(p.part[axis].count == p.shape[axis]);
      return;
    }
    std::string text = p.name;
    for (auto const& range : p.part) text += ' ' + std::to_string(range.first) + '+' + std::to_string(range.count);
    seen.push_back(text);
  });
  CHECK(seen == std::vector<std::string>{"experts.gate_up 2+2 8+4 0+6", "experts.down 2+2 4+2 0+6"});
  CHECK(part.sizes().experts == 2);
  CHECK(part.sizes().ffn == 2);
}
