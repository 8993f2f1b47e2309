// SPDX-License-Identifier: Apache-2.0
// What the messages of an operation between processes are made of, and the memory that a group keeps for them: the next
// operation uses it again, so that large messages are not new pages every time. It is as large as the largest messages were.
#pragma once

#include <moiety/backend/transport/mpi_session.hpp>
#include <moiety/backend/transport/rows.hpp>
#include <moiety/core/config.hpp>

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// What a rank says it does before its rows.
struct mpi_header {
  mpi_header() = default;
  mpi_header(rank_operation const& what, std::int64_t of_rows, std::int64_t of_width, std::int64_t of_number,
             std::int64_t in_step)
      : width(what.width),
        count(what.count),
        rows(of_rows),
        row_width(of_rows > 0 ? of_width : 0),
        step(in_step),
        number(static_cast<std::int32_t>(of_number)),
        root(what.root) {
    copy_text(name, what.name);
  }

  /// The same about other rows.
  template <class Byte> mpi_header of(rows_block<Byte> const& block) const {
    mpi_header other = *this;
    other.rows = block.rows;
    other.row_width = block.rows > 0 ? block.width : 0;
    return other;
  }

  char name[24] = {};  // the first letters of it
  std::int64_t width = 0, count = 0, rows = 0, row_width = 0, step = 0;
  std::int32_t number = 0, root = 0;  // of the operations' number the low half

  bool same_operation(mpi_header const& other) const {
    return std::memcmp(name, other.name, sizeof name) == 0 && width == other.width && count == other.count &&
           root == other.root && number == other.number;
  }
  bool same_rows(mpi_header const& other) const { return rows == other.rows && row_width == other.row_width; }
  rank_operation what() const { return {name, width, count, root}; }
};

enum class mpi_progress { none, some, all };

struct mpi_tags {
  int header, rows;
};

/// Memory that stays, and grows where more is asked for; what it held is lost then.
class mpi_room {
 public:
  std::byte* of(std::int64_t bytes) {
    if (bytes <= size_) return data_.get();
    size_ = 0;
    data_.reset();
    data_ = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(bytes));
    size_ = bytes;
    return data_.get();
  }
  std::byte* data() const { return data_.get(); }

 private:
  std::unique_ptr<std::byte[]> data_;
  std::int64_t size_ = 0;
};

/// Elements that are used from the first on; those that are not keep their memory.
template <class T> class mpi_pile {
 public:
  T& next() {
    if (used_ == all_.size()) all_.emplace_back();
    return all_[used_++];
  }
  std::span<T> used() { return {all_.data(), used_}; }
  void clear() { used_ = 0; }

 private:
  std::vector<T> all_;
  std::size_t used_ = 0;
};

/// What a request of MPI is about.
struct mpi_note {
  int peer;
  int header;  // of which incoming rows; -1 for other messages
  bool received;
};

struct mpi_parcels {
  struct incoming {
    int peer = 0, tag = 0;
    mpi_header wanted, came;
    incoming_rows rows;
    bool packed = false;  // rows come together, and go to their places when all is there
    mpi_room first, together;
  };
  struct outgoing {
    mpi_room first, rows;
  };

  void add(MPI_Request request, mpi_note const& about) {
    requests.push_back(request);
    notes.push_back(about);
    ++open;
  }
  void clear() {
    out.clear(), in.clear();
    requests.clear(), notes.clear();
    open = 0;
  }

  mpi_pile<outgoing> out;
  mpi_pile<incoming> in;
  std::vector<MPI_Request> requests;
  std::vector<mpi_note> notes;
  std::vector<int> indices;
  int open = 0;  // requests that are not done
};

/// Parcels that no operation uses. The last ones given are the next taken.
class mpi_spare {
 public:
  std::unique_ptr<mpi_parcels> take() {
    if (all_.empty()) {
      all_.reserve(++made_);  // so that giving back cannot fail
      return std::make_unique<mpi_parcels>();
    }
    auto parcels = std::move(all_.back());
    all_.pop_back();
    return parcels;
  }
  void give(std::unique_ptr<mpi_parcels> parcels) noexcept {
    parcels->clear();
    all_.push_back(std::move(parcels));
  }

 private:
  std::vector<std::unique_ptr<mpi_parcels>> all_;
  std::size_t made_ = 0;
};

}  // namespace detail

}  // namespace moiety
