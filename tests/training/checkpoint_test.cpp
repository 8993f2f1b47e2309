// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/checkpoint.hpp>

#include "training/rank_files.hpp"

#include <moiety/backend/transport/self.hpp>
#include <moiety/core/random.hpp>

#include <doctest/doctest.h>

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mo = moiety;
using mo::tensor_shape;
using mo::tensor_slice;
using mo::tensor_type;

namespace {

struct logical {
  std::string name;
  tensor_type type;
  tensor_shape shape;
};

/// One tensor of each type; three axes, two, one, none; no values; a name that needs escapes.
std::vector<logical> const model{{"experts.gate_up", tensor_type::bf16, {8, 6, 5}},
                                 {"adam.first", tensor_type::f64, {8, 6, 5}},
                                 {"router.weight", tensor_type::f32, {8, 5}},
                                 {"é \"quoted\"\\\n😀", tensor_type::f16, {7}},
                                 {"step", tensor_type::i64, {}},
                                 {"none", tensor_type::f32, {0, 4}},
                                 {"random", tensor_type::u64, {3, 2}},
                                 {"ids", tensor_type::i32, {3, 9}},
                                 {"mask", tensor_type::u8, {11}}};

/// Byte i of the whole tensor.
std::byte value(std::string const& name, std::int64_t i) {
  return static_cast<std::byte>(mo::random_word(mo::seed{7}, mo::stream_of(name), static_cast<std::uint64_t>(i)) &
                                0xffu);
}

constexpr std::byte untouched{0xee};

/// A rank's boxes of the model and their memory, and what the boxes should hold.
struct holding {
  std::vector<std::vector<std::byte>> memory, expected;
  std::vector<tensor_slice> slices;

  void add(logical const& of, tensor_shape first, tensor_shape count, bool owner) {
    std::int64_t const width = mo::bytes_of_type(of.type);
    std::int64_t values = 1, all = 1;
    for (std::int64_t const n : count) values *= n;
    for (std::int64_t const n : of.shape) all *= n;
    auto& bytes = expected.emplace_back();
    for (std::int64_t i = 0; i < all; ++i) {
      bool inside = true;
      std::int64_t rest = i;
      for (std::size_t a = of.shape.size(); a-- > 0; rest /= of.shape[a])
        inside = inside && rest % of.shape[a] >= first[a] && rest % of.shape[a] < first[a] + count[a];
      for (std::int64_t b = 0; inside && b < width; ++b) bytes.push_back(value(of.name, i * width + b));
    }
    memory.emplace_back(static_cast<std::size_t>(values * width), untouched);
    slices.push_back({of.name, of.type, of.shape, std::move(first), std::move(count), memory.back().data(), owner});
  }

  void fill() {
    for (std::size_t i = 0; i < memory.size(); ++i) std::copy(expected[i].begin(), expected[i].end(), slices_at(i));
  }
  void clear() {
    for (auto& bytes : memory) std::fill(bytes.begin(), bytes.end(), untouched);
  }
  bool holds_expected() const { return memory == expected; }
  bool is_untouched() const {
    return std::all_of(memory.begin(), memory.end(), [](auto const& bytes) {
      return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == untouched; });
    });
  }

 private:
  std::byte* slices_at(std::size_t i) { return static_cast<std::byte*>(slices[i].values); }
};

/// What rank r of n holds where the axis (the last one of tensors that have fewer) is divided among them.
holding divided(int r, int n, std::size_t axis) {
  holding mine;
  for (logical const& tensor : model) {
    tensor_shape first(tensor.shape.size()), count = tensor.shape;
    if (!count.empty()) {
      std::size_t const a = std::min(axis, count.size() - 1);
      auto const range = mo::slice_of(count[a], r, n);
      first[a] = range.first;
      count[a] = range.count;
    }
    mine.add(tensor, std::move(first), std::move(count), r == 0 || !tensor.shape.empty());
  }
  return mine;
}

void save_divided(std::string const& path, int n, std::size_t axis) {
  REQUIRE(ranks::complaint(n, [&](auto& mine) {
            holding held = divided(mine.rank(), n, axis);
            held.fill();
            mo::save_checkpoint(mine, path, held.slices, {{"step", "12"}, {"note", "a\n\"b\""}});
          }) == "");
}

/// A rank that fails at its call number `last` of those that start an operation.
class leaving : public mo::collectives<leaving> {
 public:
  using request = mo::thread_communicator::request;
  leaving(mo::thread_communicator& of, int last) : of_(&of), left_(last) {}

  int rank() const { return of_->rank(); }
  int size() const { return of_->size(); }
  request start(mo::rank_operation const& what, std::span<mo::outgoing_rows const> to,
                std::span<mo::incoming_rows const> from) {
    if (left_-- == 0) of_->fail(mo::comm_fault::aborted, "start", "this rank leaves");
    return of_->start(what, to, from);
  }
  void finish(request&& which) { of_->finish(std::move(which)); }
  void send_recv(std::span<mo::outgoing_message const> s, std::span<mo::incoming_message const> r) {
    of_->send_recv(s, r);
  }
  leaving split(int, int, std::string const&) { return *this; }

 private:
  mo::thread_communicator* of_;
  int left_;
};

}  // namespace

TEST_CASE("what any layout saves, any other loads with the same bits, and the file does not depend on it") {
  scratch_folder const folder;
  save_divided(folder.file("one"), 1, 0);
  std::string const model_file = contents(folder.file("one"));
  for (auto const& [writers, written_axis] : {std::pair{4, 0}, {4, 1}, {3, 2}, {2, 0}, {9, 0}}) {
    std::string const path = folder.file("model.safetensors");
    save_divided(path, writers, static_cast<std::size_t>(written_axis));
    CHECK(contents(path) == model_file);
    for (int readers = 1; readers <= 4; ++readers)
      for (std::size_t const axis : {0u, 1u, 2u}) {
        CHECK(ranks::complaint(readers, [&](auto& mine) {
                holding held = divided(mine.rank(), readers, axis);
                auto const metadata = mo::load_checkpoint(mine, path, held.slices);
                if (!held.holds_expected()) throw std::runtime_error("other bits");
                if (metadata != mo::text_map{{"step", "12"}, {"note", "a\n\"b\""}})
                  throw std::runtime_error("other metadata");
              }) == "");
      }
  }
  CHECK(folder.names() == std::vector<std::string>{"model.safetensors", "one"});
}

TEST_CASE("boxes of two axes, several boxes of a rank, ranks without a tensor, and replicas") {
  scratch_folder const folder;
  logical const tensor{"w", tensor_type::f32, {6, 10, 3}};
  logical const other{"of one stage", tensor_type::f64, {2}};
  auto const held_by = [&](int r) {  // ranks 0 to 3 a quarter each, in two boxes; rank 4 a replica of all
    holding mine;
    if (r == 4) {
      mine.add(tensor, {0, 0, 0}, {6, 10, 3}, false);
      mine.add(other, {0}, {2}, true);
      return mine;
    }
    tensor_shape const first{r / 2 * 3, r % 2 * 5, 0};
    mine.add(tensor, first, {3, 2, 3}, true);
    mine.add(tensor, {first[0], first[1] + 2, 0}, {3, 3, 3}, true);
    return mine;
  };
  CHECK(ranks::complaint(5, [&](auto& mine) {
          holding held = held_by(mine.rank());
          // A replica's values are not written.
          if (mine.rank() != 4) held.fill();
          if (mine.rank() == 4) std::copy(held.expected[1].begin(), held.expected[1].end(), held.memory[1].begin());
          mo::save_checkpoint(mine, folder.file("f"), held.slices);
        }) == "");
  CHECK(ranks::complaint(5, [&](auto& mine) {
          holding held = held_by(mine.rank());
          mo::load_checkpoint(mine, folder.file("f"), held.slices);
          if (!held.holds_expected()) throw std::runtime_error("other bits");
        }) == "");
}

TEST_CASE("a file without tensors is saved and loaded") {
  scratch_folder const folder;
  CHECK(ranks::complaint(3, [&](auto& mine) {
          mo::save_checkpoint(mine, folder.file("f"), {}, {{"k", "v"}});
          if (mo::load_checkpoint(mine, folder.file("f"), {}).at("k") != "v")
            throw std::runtime_error("other metadata");
        }) == "");
}

TEST_CASE("ranks whose slices do not fit together all throw, and the old file stays") {
  scratch_folder const folder;
  std::string const path = folder.file("f");
  write_file(path, "old");
  auto const saved = [&](auto const& change) {
    return ranks::complaint(3, [&](auto& mine) {
      holding held = divided(mine.rank(), 3, 0);
      if (mine.rank() == 2) change(held.slices);
      mo::save_checkpoint(mine, path, held.slices);
    });
  };
  CHECK(saved([](auto& slices) { slices[2].type = tensor_type::i32; }) ==
        "config_error: rank 0: tensor \"router.weight\" is of type I32 on rank 2, but F32 on rank 0.");
  CHECK(saved([](auto& slices) { slices[2].shape[1] = 6; }) ==
        "config_error: rank 0: tensor \"router.weight\" is of shape [8, 6] on rank 2, but [8, 5] on rank 0.");
  CHECK(saved([](auto& slices) { slices[2].owner = false; }) ==
        "config_error: rank 0: tensor \"router.weight\": the boxes of its owners have 120 of its 160 bytes.");
  CHECK(saved([](auto& slices) { slices.pop_back(); }) ==
        "config_error: rank 0: tensor \"mask\": the boxes of its owners have 8 of its 11 bytes.");
  CHECK(saved([](auto& slices) { slices[4].owner = true; }) ==
        "config_error: rank 0: tensor \"step\": the box of [] from [] of rank 0 and the box of [] from [] of rank 2 "
        "overlap, and both are owners.");
  CHECK(saved([](auto& slices) { slices[2].first[0] = 7; }) ==
        "config_error: rank 2: tensor \"router.weight\" of shape [8, 5] does not have the box of [2, 5] from [7, 0].");
  CHECK(saved([](auto& slices) { slices[2].values = nullptr; }) ==
        "config_error: rank 2: tensor \"router.weight\" of shape [8, 5] has no values.");
  CHECK(contents(path) == "old");
  CHECK(folder.names() == std::vector<std::string>{"f"});
}

TEST_CASE("a rank that cannot write leaves the old file, and no partial one") {
  scratch_folder const folder;
  std::string const path = folder.file("f");
  write_file(path, "old");
  void* const unreadable = ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(unreadable != MAP_FAILED);
  for (int const failing : {0, 3})
    CHECK(ranks::complaint(4,
                           [&](auto& mine) {
                             holding held = divided(mine.rank(), 4, 0);
                             if (mine.rank() == failing) held.slices[2].values = unreadable;
                             mo::save_checkpoint(mine, path, held.slices);
                           }) == "resource_error: rank " + std::to_string(failing) + ": " + path +
                                     ".partial-0 cannot be written: Bad address.");
  ::munmap(unreadable, 4096);
  CHECK(contents(path) == "old");
  CHECK(folder.names() == std::vector<std::string>{"f"});
}

TEST_CASE("a folder that is not there, is none or may not be written is an error on all ranks") {
  scratch_folder const folder;
  write_file(folder.file("f"), "a file");
  auto const saved = [&](std::string const& path) {
    return ranks::complaint(2, [&](auto& mine) {
      holding held = divided(mine.rank(), 2, 0);
      mo::save_checkpoint(mine, path, held.slices);
    });
  };
  CHECK(saved(folder.file("none/f")) == "resource_error: rank 0: " + folder.file("none/f") +
                                            ".partial-0 cannot be created: No such file or directory.");
  CHECK(saved(folder.file("f/f")).ends_with("f/f.partial-0 cannot be created: Not a directory."));
  ::mkdir(folder.file("taken").c_str(), 0700);
  CHECK(saved(folder.file("taken")) ==
        "resource_error: rank 0: " + folder.file("taken") + " cannot be replaced: Is a directory.");
  ::mkdir(folder.file("locked").c_str(), 0500);
  if (::geteuid() != 0)  // to root nothing is locked
    CHECK(saved(folder.file("locked/f")).ends_with("cannot be created: Permission denied."));
  CHECK(folder.names() == std::vector<std::string>{"f", "locked", "taken"});
}

TEST_CASE("wherever a rank leaves, the file is the old one or the new one, and no partial one stays") {
  scratch_folder const folder;
  std::string const path = folder.file("f");
  save_divided(folder.file("new"), 3, 0);
  int failures = 0, kept = 0, saved = 0;
  for (int const quitter : {0, 1})
    for (int last = 0;; ++last) {
      write_file(path, "old");
      auto const said = ranks::complaints(3, [&](mo::thread_communicator& of) {
        leaving mine(of, of.rank() == quitter ? last : -1);
        holding held = divided(mine.rank(), 3, 0);
        held.fill();
        mo::save_checkpoint(mine, path, held.slices, {{"step", "12"}, {"note", "a\n\"b\""}});
      });
      bool const old = contents(path) == "old";
      kept += old;
      saved += !old;
      if (!old) CHECK(contents(path) == contents(folder.file("new")));
      CHECK(folder.names() == std::vector<std::string>{"f", "new"});
      if (said == std::vector<std::string>(3)) break;
      for (std::string const& one : said) CHECK(one.starts_with("comm_error: "));
      ++failures;
    }
  CHECK(failures > 10);
  CHECK(kept > 8);
  CHECK(saved >= 2);
}

TEST_CASE("a file that does not have what is asked for is refused by all ranks before a value is written") {
  scratch_folder const folder;
  std::string const path = folder.file("f");
  save_divided(path, 2, 1);
  auto const loaded = [&](auto const& change) {
    int touched = 0;
    std::vector<int> of_ranks(3);
    std::string const said = ranks::complaint(3, [&](auto& mine) {
      holding held = divided(mine.rank(), 3, 0);
      if (mine.rank() == 1) change(held.slices);
      try {
        mo::load_checkpoint(mine, path, held.slices);
      } catch (...) {
        of_ranks[static_cast<std::size_t>(mine.rank())] = !held.is_untouched();
        throw;
      }
    });
    for (int const t : of_ranks) touched += t;
    CHECK(touched == 0);
    return said;
  };
  CHECK(loaded([](auto&) {}) == "");
  CHECK(loaded([](auto& slices) { slices[2].name = "router.wait"; }) ==
        "data_error: rank 1: " + path + " has no tensor \"router.wait\".");
  CHECK(loaded([](auto& slices) { slices[2].type = tensor_type::i32; }) ==
        "data_error: rank 1: " + path + ": tensor \"router.weight\" is of type F32, but I32 is to be loaded.");
  CHECK(loaded([](auto& slices) {
          slices[2].shape = {9, 5};
        }) ==
        "data_error: rank 1: " + path + ": tensor \"router.weight\" is of shape [8, 5], but [9, 5] is to be loaded.");
  CHECK(loaded([](auto& slices) { slices[2].count[1] = 6; }).starts_with("config_error: rank 1: tensor \"router.w"));
  CHECK(loaded([](auto& slices) { slices.erase(slices.begin() + 2); }) == "");  // others ask for it
  std::string const gone = path + " is gone";
  CHECK(ranks::complaint(2, [&](auto& mine) { mo::load_checkpoint(mine, mine.rank() == 1 ? gone : path, {}); }) ==
        "data_error: rank 1: " + gone + " cannot be opened: No such file or directory.");
}

TEST_CASE("tensors that nobody asks for are refused unless they are allowed") {
  scratch_folder const folder;
  std::string const path = folder.file("f");
  save_divided(path, 2, 1);
  auto const loaded = [&](mo::load_options const& options) {
    return ranks::complaint(3, [&](auto& mine) {
      holding held = divided(mine.rank(), 3, 0);
      held.slices.pop_back();
      mo::load_checkpoint(mine, path, held.slices, options);
      held.memory.pop_back();
      held.expected.pop_back();
      if (!held.holds_expected()) throw std::runtime_error("other bits");
    });
  };
  CHECK(loaded({}) == "data_error: " + path + ": tensor \"mask\" is not to be loaded.");
  CHECK(loaded({.allow_others = true}) == "");
}

TEST_CASE("ranks that see different files are told so") {
  scratch_folder const folder;
  for (int const r : {0, 1}) {
    mo::self_communicator alone;
    mo::save_checkpoint(alone, folder.file(std::to_string(r)), {}, {{"rank", std::to_string(r)}});
  }
  auto const said = ranks::complaints(
      2, [&](auto& mine) { mo::load_checkpoint(mine, folder.file(std::to_string(mine.rank())), {}); });
  for (std::size_t const r : {0u, 1u})
    CHECK(said[r] == "data_error: " + folder.file(std::to_string(r)) + " is not the same file for all ranks.");
}

TEST_CASE("values beyond 4 GiB of a tensor are loaded from their place") {
  scratch_folder const folder;
  std::int64_t const rows = 5 << 20, columns = 1024;
  mo::safetensors_header header;
  header.tensors["w"] = {.type = tensor_type::u8, .shape = {rows, columns}};
  std::string const head = mo::write_safetensors(header);
  {
    auto file = mo::detail::posix_file::create(folder.file("f"));
    file.write(head.data(), static_cast<std::int64_t>(head.size()), 0);
    file.resize(header.data + rows * columns);
    file.write("last", 4, header.data + rows * columns - 4);
  }
  std::string read(4, ' ');
  tensor_slice const end{"w", tensor_type::u8, {rows, columns}, {rows - 1, columns - 4}, {1, 4}, read.data()};
  mo::self_communicator alone;
  mo::load_checkpoint(alone, folder.file("f0"), std::span(&end, 1));
  CHECK(read == "last");
}

TEST_CASE("a damaged file loads the same bits or is refused, and nothing is written then") {
  scratch_folder const folder;
  std::string const path = folder.file("f");
  save_divided(path, 1, 0);
  std::string const whole = contents(path);
  std::uint64_t length = 0;
  std::memcpy(&length, whole.data(), sizeof length);
  std::size_t const data = 8 + static_cast<std::size_t>(length);
  mo::self_communicator alone;
  std::uint64_t drawn = 0;
  auto const draw = [&](std::size_t below) { return mo::random_word(mo::seed{11}, 0, drawn++) % below; };
  holding held = divided(0, 1, 0);
  int loaded = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string hurt = whole;
    if (i % 4 == 0)
      hurt.resize(i < 1000 ? draw(data + 8) : draw(hurt.size()));
    else if (i % 4 == 1)
      hurt.append(1 + draw(9), '\0');
    else
      for (std::size_t changes = 1 + draw(2); changes > 0; --changes) {
        std::size_t const at = i % 32 == 2 ? draw(8) : draw(data);
        hurt[at] = static_cast<char>(hurt[at] ^ (1 << draw(8)));
      }
    write_file(path, hurt);
    held.clear();
    try {
      mo::load_checkpoint(alone, path, held.slices);
      ++loaded;
      if (!held.holds_expected()) FAIL_CHECK("case " << i << " loaded other bits");
    } catch (mo::data_error const& error) {
      if (!held.is_untouched()) FAIL_CHECK("case " << i << " wrote values");
      if (std::string_view(error.what()).find(path) != 0) FAIL_CHECK("case " << i << ": " << error.what());
    }
  }
  CHECK(loaded < 400);
}
