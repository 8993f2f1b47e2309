// SPDX-License-Identifier: Apache-2.0
// Where ranks that speak through NCCL meet: an id, made by one and brought to all.
//
//   NCCL_COMM_ID          host:port of rank 0; NCCL reads it, and nothing else has to be brought
//   MOIETY_NCCL_ID_FILE   a file that is not there yet, in a folder that all see; rank 0 writes it, and removes it in the end
#pragma once

#include <moiety/backend/transport/launch.hpp>
#include <moiety/backend/transport/nccl_world.hpp>
#include <moiety/backend/transport/run_options.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <nccl.h>

#include <optional>

namespace moiety::inline MOIETY_ABI {

namespace detail {

inline ncclUniqueId new_nccl_id() {
  ncclUniqueId id{};
  ncclResult_t const result = ncclGetUniqueId(&id);
  require<config_error>(result == ncclSuccess, "NCCL has no place for ranks to meet: ", nccl_text(result), '.');
  return id;
}

/// The id at which the ranks of a job meet. The file, where one is used, goes when rank 0 has met the others.
template <class Lookup>
ncclUniqueId nccl_id_of(launched const& job, Lookup const& lookup, run_options const& options,
                        std::optional<meeting_file>& file) {
  char const* const path = lookup("MOIETY_NCCL_ID_FILE");
  if (job.size == 1 || lookup("NCCL_COMM_ID") != nullptr) return new_nccl_id();
  require<config_error>(
      path != nullptr && *path != '\0', "the ", job.size,
      " ranks of the job have no place to meet: set NCCL_COMM_ID to an address host:port of rank 0, or "
      "MOIETY_NCCL_ID_FILE to a file that is not there yet, in a folder that all see.");
  ncclUniqueId id{};
  if (job.rank == 0) id = new_nccl_id();
  file.emplace(path);
  job.rank == 0 ? file->leave(id.internal) : file->take(id.internal, options);
  return id;
}

}  // namespace detail

}  // namespace moiety
