// SPDX-License-Identifier: Apache-2.0
// What ranks that are processes of an MPI job reach: all_to_all_v beside MPI's own, and rows to experts and back beside a copy
// by memcpy on as many processors. Both of a row take turns in the same run; medians by the clock of rank 0.
//
//   mpirun -n RANKS moiety_bench_mpi FILE.json [ROUNDS]
#include "../dispatcher/dispatched.hpp"
#include "../ranks.hpp"

#include <moiety/moiety.hpp>
#include <moiety/mpi.hpp>

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace {

using namespace bench;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  std::size_t const half = values.size() / 2;
  return values.size() % 2 != 0 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// Rows of two times each, ours and what it is held against; rank 0 prints and writes them.
class results {
 public:
  void add(bool speaks, std::string const& name, double ours, double theirs) {
    if (!speaks) return;
    std::printf("%-52s %12.2f us %12.2f us %8.2f\n", name.c_str(), ours * 1e6, theirs * 1e6, ours / theirs);
    std::fflush(stdout);
    char row[256];
    std::snprintf(row, sizeof row, "%s{\"name\": \"%s\", \"ours_s\": %.9g, \"theirs_s\": %.9g}",
                  rows_.empty() ? "\n  " : ",\n  ", name.c_str(), ours, theirs);
    rows_ += row;
  }
  bool write(char const* path, int ranks) const {
    std::FILE* const file = std::fopen(path, "w");
    if (file == nullptr) return false;
    std::fprintf(file, "{\"ranks\": %d, \"rows\": [%s\n]}\n", ranks, rows_.c_str());
    return std::fclose(file) == 0;
  }

 private:
  std::string rows_;
};

/// Equal blocks of `bytes` to every rank.
void all_to_all_v(moiety::mpi_communicator& ranks, std::int64_t bytes, int rounds, results& all) {
  auto const size = static_cast<std::size_t>(ranks.size());
  std::vector<std::byte> out(size * static_cast<std::size_t>(bytes), std::byte{1}), in(out.size());
  std::vector<std::int64_t> const counts(size, bytes);
  std::vector<int> const lengths(size, static_cast<int>(bytes));
  std::vector<int> starts(size);
  std::exclusive_scan(lengths.begin(), lengths.end(), starts.begin(), 0);
  auto const ours = [&] { ranks.all_to_all_v<std::byte>(out, counts, in, counts); };
  auto const theirs = [&] {
    MPI_Alltoallv(out.data(), lengths.data(), starts.data(), MPI_BYTE, in.data(), lengths.data(), starts.data(),
                  MPI_BYTE, MPI_COMM_WORLD);
  };
  int const calls = static_cast<int>(std::clamp<std::int64_t>((std::int64_t{16} << 20) / bytes, 4, 200));
  std::vector<double> of_ours, of_theirs;
  for (int round = 0; round < rounds; ++round) {
    of_ours.push_back(seconds_of(ranks, calls, ours));
    of_theirs.push_back(seconds_of(ranks, calls, theirs));
  }
  all.add(ranks.rank() == 0, "all_to_all_v/bytes:" + std::to_string(bytes), median(of_ours), median(of_theirs));
}

/// Bytes/s of a copy on as many processors as the ranks have, all at once.
double copy_rate(moiety::mpi_communicator& ranks) {
  constexpr std::size_t bytes = std::size_t{64} << 20;
  static memory_block const from(bytes), to(bytes);
  bool const copies = ranks.rank() < sysconf(_SC_NPROCESSORS_ONLN);  // a launcher may have bound each rank to one
  double rate = 2 * static_cast<double>(bytes) / seconds_of(ranks, 1, [&] {
                  if (copies) std::memcpy(to.as<char>(), from.as<char>(), bytes);
                });
  if (!copies) rate = 0;
  ranks.all_reduce(std::span(&rate, 1));
  return rate;
}

template <class Dispatcher, int Slots> void dispatch(dispatch_case const& of, int rounds, results& all) {
  using deployment = spread<float, Dispatcher, moiety::mpi>;
  int ranks = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  on_ranks<deployment>(ranks, [&](moiety::context<deployment>& ctx) {
    dispatched<deployment, Slots> f(ctx, of);
    double const bytes = f.bytes();
    int const calls = std::max(1, static_cast<int>(3e8 / bytes));
    std::vector<double> times;
    double rate = 0;
    for (int round = 0; round < rounds; ++round) {
      rate = std::max(rate, copy_rate(ctx.world()));
      times.push_back(seconds_of(ctx.world(), calls, [&] { f.bring_and_give_back(); }));
    }
    all.add(ctx.world().rank() == 0,
            "dispatch/" + std::string(Dispatcher::name) + "/float/top:" + std::to_string(Slots) + "/" + of.name(),
            median(times), bytes / rate);
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "usage: mpirun -n RANKS %s FILE.json [ROUNDS]\n", argv[0]), 2;
  int const rounds = argc > 2 ? std::max(1, std::atoi(argv[2])) : 11;
  auto ranks = moiety::mpi_communicator::world();
  bool const speaks = ranks.rank() == 0;
  if (speaks) std::printf("%d processes of MPI%*s %12s %15s %8s\n", ranks.size(), 34, "", "median", "beside", "ratio");
  results all;
  for (std::int64_t const bytes : {64, 512, 4096, 65536, 1048576, 8388608}) all_to_all_v(ranks, bytes, rounds, all);
  for (std::int64_t const tokens : {512, 4096}) {
    dispatch<moiety::all_to_all, 2>({tokens}, rounds, all);
    dispatch<moiety::all_to_all, 8>({tokens}, rounds, all);
    dispatch<moiety::all_gather_tokens, 8>({tokens}, rounds, all);
    if (ranks.size() % 2 == 0) dispatch<moiety::two_level<2>, 8>({tokens}, rounds, all);
  }
  return !speaks || all.write(argv[1], ranks.size()) ? 0 : 1;
}
