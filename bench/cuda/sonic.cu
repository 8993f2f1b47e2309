// SPDX-License-Identifier: Apache-2.0
// The ten shapes for which SonicMoE's authors published times, evenly routed: tokens, H, I, E, k.
#include "models.hpp"

#include "model.cuh"

#include <moiety/presets.hpp>

namespace {

template <int Slots, std::int64_t H, std::int64_t I, std::int64_t E>
struct sonic : moiety::layer_spec<moiety::dims{.hidden = H, .ffn = I, .experts = E}> {
  using router = moiety::router<moiety::softmax, moiety::top_k<Slots>, moiety::renormalised>;
};

template <std::int64_t H, std::int64_t I, std::int64_t E, int Slots>
bool rows(bench::options const& asked, std::int64_t tokens) {
  std::string name = "sonic";
  for (std::int64_t const size : {H, I, E, std::int64_t{Slots}}) name += '_' + std::to_string(size);
  bench::model<sonic<Slots, H, I, E>> of(name, asked);
  of.measure_all({tokens}, {"uniform"});
  return of.finished();
}

}  // namespace

bool bench::measure_sonic(options const& asked) {
  return rows<768, 256, 128, 8>(asked, 40960) && rows<1536, 256, 128, 8>(asked, 24576) &&
         rows<1536, 512, 64, 4>(asked, 24576) && rows<1536, 1024, 32, 2>(asked, 24576) &&
         rows<4096, 256, 256, 16>(asked, 32768) && rows<4096, 512, 128, 8>(asked, 32768) &&
         rows<4096, 1024, 64, 4>(asked, 32768) && rows<4096, 512, 256, 8>(asked, 32768) &&
         rows<4096, 1024, 128, 8>(asked, 32768) && rows<4096, 2048, 64, 4>(asked, 32768);
}
