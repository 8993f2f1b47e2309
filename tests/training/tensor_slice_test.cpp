// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/tensor_slice.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;
using mo::tensor_shape;
using mo::tensor_slice;
using mo::tensor_type;

namespace {

char somewhere = 0;

tensor_slice box(tensor_shape shape, tensor_shape first, tensor_shape count, tensor_type type = tensor_type::u8) {
  return {.name = "t",
          .type = type,
          .shape = std::move(shape),
          .first = std::move(first),
          .count = std::move(count),
          .values = &somewhere};
}

using runs = std::vector<std::array<std::int64_t, 3>>;

runs runs_of(tensor_slice const& slice) {
  runs all;
  mo::detail::for_each_run(slice, [&](std::int64_t in_tensor, std::int64_t in_box, std::int64_t length) {
    all.push_back({in_tensor, in_box, length});
  });
  return all;
}

std::string complaint(tensor_slice const& slice) {
  try {
    mo::detail::check_slice(slice);
  } catch (mo::config_error const& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("runs of a box are as long as they can be") {
  CHECK(runs_of(box({}, {}, {}, tensor_type::f64)) == runs{{0, 0, 8}});
  CHECK(runs_of(box({6}, {2}, {3}, tensor_type::f32)) == runs{{8, 0, 12}});
  CHECK(runs_of(box({4, 3, 5}, {0, 0, 0}, {4, 3, 5})) == runs{{0, 0, 60}});
  CHECK(runs_of(box({4, 3, 5}, {1, 0, 0}, {2, 3, 5})) == runs{{15, 0, 30}});
  CHECK(runs_of(box({4, 3, 5}, {1, 1, 0}, {2, 2, 5}, tensor_type::bf16)) == runs{{40, 0, 20}, {70, 20, 20}});
  CHECK(runs_of(box({2, 2, 5}, {0, 0, 3}, {2, 2, 2})) == runs{{3, 0, 2}, {8, 2, 2}, {13, 4, 2}, {18, 6, 2}});
  CHECK(runs_of(box({3, 1, 1, 4}, {1, 0, 0, 0}, {1, 1, 1, 4})) == runs{{4, 0, 4}});
  CHECK(runs_of(box({3, 4}, {1, 4}, {2, 0})).empty());
  CHECK(runs_of(box({0, std::int64_t{1} << 62, 8}, {0, 0, 0}, {0, 1, 1})).empty());
}

TEST_CASE("runs of every box of a tensor are its values, in order") {
  tensor_shape const shape{3, 2, 4, 3};
  int boxes = 0;
  for (std::int64_t code = 0; code < 6 * 3 * 10 * 6; ++code) {
    tensor_shape first, count;
    std::int64_t rest = code;
    for (std::int64_t const extent : shape) {  // the ranges of an axis that are not empty
      std::int64_t which = rest % (extent * (extent + 1) / 2), begin = 0;
      rest /= extent * (extent + 1) / 2;
      while (which >= extent - begin) which -= extent - begin++;
      first.push_back(begin);
      count.push_back(which + 1);
    }
    std::vector<std::int64_t> expected, found;
    for (std::int64_t i = 0; i < 72; ++i) {
      tensor_shape const index{i / 24, i / 12 % 2, i / 3 % 4, i % 3};
      bool inside = true;
      for (std::size_t a = 0; a < 4; ++a) inside = inside && index[a] >= first[a] && index[a] < first[a] + count[a];
      if (inside) expected.push_back(i);
    }
    for (auto const& [in_tensor, in_box, length] : runs_of(box(shape, first, count))) {
      if (in_box != static_cast<std::int64_t>(found.size())) FAIL_CHECK(code);
      for (std::int64_t i = 0; i < length; ++i) found.push_back(in_tensor + i);
    }
    if (found != expected) FAIL_CHECK(code);
    ++boxes;
  }
  CHECK(boxes == 1080);
}

TEST_CASE("places of large tensors are 64-bit") {
  auto const large = box({384, 7168, 4096}, {383, 7167, 4095}, {1, 1, 1}, tensor_type::f32);
  CHECK(runs_of(large) == runs{{std::int64_t{384} * 7168 * 4096 * 4 - 4, 0, 4}});
}

TEST_CASE("boxes overlap where they share a value") {
  auto const a = box({4, 6}, {1, 2}, {2, 2});
  CHECK(mo::detail::overlap(a, a));
  CHECK(mo::detail::overlap(a, box({4, 6}, {2, 3}, {2, 3})));
  CHECK(mo::detail::overlap(a, box({4, 6}, {0, 0}, {4, 6})));
  CHECK_FALSE(mo::detail::overlap(a, box({4, 6}, {3, 2}, {1, 2})));
  CHECK_FALSE(mo::detail::overlap(a, box({4, 6}, {1, 0}, {2, 2})));
  CHECK_FALSE(mo::detail::overlap(a, box({4, 6}, {1, 4}, {2, 2})));
  CHECK_FALSE(mo::detail::overlap(a, box({4, 6}, {1, 3}, {2, 0})));
  CHECK(mo::detail::overlap(box({}, {}, {}), box({}, {}, {})));
}

TEST_CASE("a slice that makes no sense is refused") {
  CHECK(complaint(box({4, 6}, {1, 2}, {2, 2})) == "");
  CHECK(complaint(box({4, 6}, {4, 0}, {0, 6})) == "");
  CHECK(complaint(box({4, 6}, {1, 5}, {2, 2})) ==
        "tensor \"t\" of shape [4, 6] does not have the box of [2, 2] from [1, 5].");
  CHECK(complaint(box({4}, {-1}, {2})) == "tensor \"t\" of shape [4] does not have the box of [2] from [-1].");
  CHECK(complaint(box({4}, {1}, {-2})) == "tensor \"t\" of shape [4] does not have the box of [-2] from [1].");
  CHECK(complaint(box({4}, {INT64_MAX}, {2})).starts_with("tensor \"t\" of shape [4] does not have the box"));
  CHECK(complaint(box({4, 6}, {1}, {2, 2})) ==
        "tensor \"t\" of shape [4, 6] has another number of axes than the box of [2, 2] from [1].");
  CHECK(complaint(box({-4, -6}, {0, 0}, {0, 0})) ==
        "tensor \"t\" of shape [-4, -6] has too many values, or fewer than none.");
  CHECK(complaint(box({std::int64_t{1} << 61}, {0}, {1}, tensor_type::f32)) ==
        "tensor \"t\" of shape [2305843009213693952] has too many values, or fewer than none.");
  auto slice = box({4}, {0}, {1});
  slice.values = nullptr;
  CHECK(complaint(slice) == "tensor \"t\" of shape [4] has no values.");
  slice.count = {0};
  CHECK(complaint(slice) == "");
  slice.name = "__metadata__";
  CHECK(complaint(slice) == "no tensor can be called \"__metadata__\".");
  slice.name = "a\xff";
  CHECK(complaint(slice).starts_with("no tensor can be called \"a"));
}

TEST_CASE("a whole tensor is the box of all its values") {
  std::vector<float> values(12);
  auto const all = mo::whole_tensor("w", {3, 4}, std::span(values), false);
  CHECK(all.type == tensor_type::f32);
  CHECK(all.first == tensor_shape{0, 0});
  CHECK(all.count == tensor_shape{3, 4});
  CHECK(all.values == values.data());
  CHECK(all.bytes() == 48);
  CHECK_FALSE(all.owner);
  CHECK_THROWS_WITH_AS(mo::whole_tensor("w", {3, 5}, std::span(values)),
                       "tensor \"w\" of shape [3, 5] was given 12 values.", mo::config_error);
}

TEST_CASE("consecutive values of a box are boxes, in order and as few as there can be") {
  std::array<std::uint8_t, 1000> memory{};
  auto const boxes = [&](tensor_slice const& of, mo::range_of which) {
    return mo::detail::boxes_of(of, which, memory.data());
  };
  tensor_slice const whole = box({9, 8, 7, 6}, {2, 1, 0, 3}, {4, 5, 7, 2});
  CHECK(boxes(whole, {17, 0}).empty());
  CHECK(boxes(whole, {0, 280}).size() == 1);
  CHECK(boxes(whole, {70, 140}).size() == 1);  // two indices of the first axis
  CHECK(boxes(whole, {1, 278}).size() == 7);
  CHECK(boxes(box({5}, {1}, {4}), {1, 2}).size() == 1);
  CHECK(boxes(box({}, {}, {}), {0, 1}).size() == 1);
  std::vector<std::int64_t> places;  // in the tensor, of each value of the whole box
  for (auto const& [place, at, length] : runs_of(whole))
    for (std::int64_t i = 0; i < length; ++i) places.push_back(place + i);
  REQUIRE(places.size() == 280);
  for (std::int64_t first = 0; first <= 280; first += 3)
    for (std::int64_t count = 0; count <= 280 - first; count += 7) {
      std::vector<std::int64_t> found;
      auto* next = memory.data();
      for (tensor_slice const& piece : boxes(whole, {first, count})) {
        CHECK(piece.values == next);
        next += piece.bytes();
        CHECK(complaint(piece).empty());
        for (auto const& [place, at, length] : runs_of(piece))
          for (std::int64_t i = 0; i < length; ++i) found.push_back(place + i);
      }
      CHECK(found == std::vector<std::int64_t>(places.begin() + first, places.begin() + first + count));
    }
}
