// SPDX-License-Identifier: Apache-2.0
// Groups of ranks, from the key rank_layout of tests/golden/schedules.json; groups are parted by bars.
#pragma once

#include <moiety/mesh/grid.hpp>
#include <moiety/mesh/layout.hpp>

#include <string_view>
#include <vector>

namespace golden {

namespace mo = moiety;

struct groups {
  mo::axis_set along;
  std::string_view ranks;
};

struct world {
  mo::layout shape;
  std::vector<groups> families;
};

inline std::vector<world> const worlds{
    {{.data = 8, .expert = 4},
     {
         {mo::axis::tensor, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7"},
         {mo::axis::context, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7"},
         {mo::axis::data, "0 1 2 3 4 5 6 7"},
         {mo::axis::pipeline, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7"},
         {mo::axis::data | mo::axis::context, "0 1 2 3 4 5 6 7"},
         {mo::axis::tensor | mo::axis::context, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7"},
         {mo::axis::tensor | mo::axis::pipeline, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7"},
         {mo::axis::expert_tensor, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7"},
         {mo::axis::expert, "0 1 2 3 | 4 5 6 7"},
         {mo::axis::expert_data, "0 4 | 1 5 | 2 6 | 3 7"},
         {mo::axis::pipeline, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7"},
         {mo::axis::expert_tensor | mo::axis::expert, "0 1 2 3 | 4 5 6 7"},
         {mo::axis::expert_tensor | mo::axis::expert | mo::axis::pipeline, "0 1 2 3 | 4 5 6 7"},
     }},
    {{.data = 2, .tensor = 2, .pipeline = 2, .expert = 4},
     {
         {mo::axis::tensor, "0 1 | 2 3 | 4 5 | 6 7"},
         {mo::axis::context, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7"},
         {mo::axis::data, "0 2 | 1 3 | 4 6 | 5 7"},
         {mo::axis::pipeline, "0 4 | 1 5 | 2 6 | 3 7"},
         {mo::axis::data | mo::axis::context, "0 2 | 1 3 | 4 6 | 5 7"},
         {mo::axis::tensor | mo::axis::context, "0 1 | 2 3 | 4 5 | 6 7"},
         {mo::axis::tensor | mo::axis::pipeline, "0 1 4 5 | 2 3 6 7"},
         {mo::axis::expert_tensor, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7"},
         {mo::axis::expert, "0 1 2 3 | 4 5 6 7"},
         {mo::axis::expert_data, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7"},
         {mo::axis::pipeline, "0 4 | 1 5 | 2 6 | 3 7"},
         {mo::axis::expert_tensor | mo::axis::expert, "0 1 2 3 | 4 5 6 7"},
         {mo::axis::expert_tensor | mo::axis::expert | mo::axis::pipeline, "0 1 2 3 4 5 6 7"},
     }},
    {{.data = 4, .tensor = 2, .pipeline = 2, .expert = 4},
     {
         {mo::axis::tensor, "0 1 | 2 3 | 4 5 | 6 7 | 8 9 | 10 11 | 12 13 | 14 15"},
         {mo::axis::context, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12 | 13 | 14 | 15"},
         {mo::axis::data, "0 2 4 6 | 1 3 5 7 | 8 10 12 14 | 9 11 13 15"},
         {mo::axis::pipeline, "0 8 | 1 9 | 2 10 | 3 11 | 4 12 | 5 13 | 6 14 | 7 15"},
         {mo::axis::data | mo::axis::context, "0 2 4 6 | 1 3 5 7 | 8 10 12 14 | 9 11 13 15"},
         {mo::axis::tensor | mo::axis::context, "0 1 | 2 3 | 4 5 | 6 7 | 8 9 | 10 11 | 12 13 | 14 15"},
         {mo::axis::tensor | mo::axis::pipeline, "0 1 8 9 | 2 3 10 11 | 4 5 12 13 | 6 7 14 15"},
         {mo::axis::expert_tensor, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12 | 13 | 14 | 15"},
         {mo::axis::expert, "0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 15"},
         {mo::axis::expert_data, "0 4 | 1 5 | 2 6 | 3 7 | 8 12 | 9 13 | 10 14 | 11 15"},
         {mo::axis::pipeline, "0 8 | 1 9 | 2 10 | 3 11 | 4 12 | 5 13 | 6 14 | 7 15"},
         {mo::axis::expert_tensor | mo::axis::expert, "0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 15"},
         {mo::axis::expert_tensor | mo::axis::expert | mo::axis::pipeline, "0 1 2 3 8 9 10 11 | 4 5 6 7 12 13 14 15"},
     }},
    {{.data = 2, .tensor = 2, .context = 2, .pipeline = 2, .expert = 8},
     {
         {mo::axis::tensor, "0 1 | 2 3 | 4 5 | 6 7 | 8 9 | 10 11 | 12 13 | 14 15"},
         {mo::axis::context, "0 2 | 1 3 | 4 6 | 5 7 | 8 10 | 9 11 | 12 14 | 13 15"},
         {mo::axis::data, "0 4 | 1 5 | 2 6 | 3 7 | 8 12 | 9 13 | 10 14 | 11 15"},
         {mo::axis::pipeline, "0 8 | 1 9 | 2 10 | 3 11 | 4 12 | 5 13 | 6 14 | 7 15"},
         {mo::axis::data | mo::axis::context, "0 2 4 6 | 1 3 5 7 | 8 10 12 14 | 9 11 13 15"},
         {mo::axis::tensor | mo::axis::context, "0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 15"},
         {mo::axis::tensor | mo::axis::pipeline, "0 1 8 9 | 2 3 10 11 | 4 5 12 13 | 6 7 14 15"},
         {mo::axis::expert_tensor, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12 | 13 | 14 | 15"},
         {mo::axis::expert, "0 1 2 3 4 5 6 7 | 8 9 10 11 12 13 14 15"},
         {mo::axis::expert_data, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12 | 13 | 14 | 15"},
         {mo::axis::pipeline, "0 8 | 1 9 | 2 10 | 3 11 | 4 12 | 5 13 | 6 14 | 7 15"},
         {mo::axis::expert_tensor | mo::axis::expert, "0 1 2 3 4 5 6 7 | 8 9 10 11 12 13 14 15"},
         {mo::axis::expert_tensor | mo::axis::expert | mo::axis::pipeline, "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"},
     }},
    {{.data = 4, .tensor = 2, .expert = 2, .expert_tensor = 2},
     {
         {mo::axis::tensor, "0 1 | 2 3 | 4 5 | 6 7"},
         {mo::axis::context, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7"},
         {mo::axis::data, "0 2 4 6 | 1 3 5 7"},
         {mo::axis::pipeline, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7"},
         {mo::axis::data | mo::axis::context, "0 2 4 6 | 1 3 5 7"},
         {mo::axis::tensor | mo::axis::context, "0 1 | 2 3 | 4 5 | 6 7"},
         {mo::axis::tensor | mo::axis::pipeline, "0 1 | 2 3 | 4 5 | 6 7"},
         {mo::axis::expert_tensor, "0 1 | 2 3 | 4 5 | 6 7"},
         {mo::axis::expert, "0 2 | 1 3 | 4 6 | 5 7"},
         {mo::axis::expert_data, "0 4 | 1 5 | 2 6 | 3 7"},
         {mo::axis::pipeline, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7"},
         {mo::axis::expert_tensor | mo::axis::expert, "0 1 2 3 | 4 5 6 7"},
         {mo::axis::expert_tensor | mo::axis::expert | mo::axis::pipeline, "0 1 2 3 | 4 5 6 7"},
     }},
};

}  // namespace golden
