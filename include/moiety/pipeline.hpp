// SPDX-License-Identifier: Apache-2.0
// Everything about pipelines: schedules as data that the compiler can check, and how a model is cut into stages.
#pragma once

#include <moiety/pipeline/engine.hpp>
#include <moiety/pipeline/ledger.hpp>
#include <moiety/pipeline/microbatches.hpp>
#include <moiety/pipeline/moe_stack.hpp>
#include <moiety/pipeline/stage.hpp>
#include <moiety/pipeline/timeline.hpp>
#include <moiety/schedule/action.hpp>
#include <moiety/schedule/analysis.hpp>
#include <moiety/schedule/block_costs.hpp>
#include <moiety/schedule/costs.hpp>
#include <moiety/schedule/csv.hpp>
#include <moiety/schedule/draw.hpp>
#include <moiety/schedule/lower.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/orders/dual_pipe.hpp>
#include <moiety/schedule/orders/dual_pipe_v.hpp>
#include <moiety/schedule/orders/gpipe.hpp>
#include <moiety/schedule/orders/interleaved_1f1b.hpp>
#include <moiety/schedule/orders/interleaved_1f1b_overlapped.hpp>
#include <moiety/schedule/orders/interleaved_zb1p.hpp>
#include <moiety/schedule/orders/looped_bfs.hpp>
#include <moiety/schedule/orders/one_f_one_b.hpp>
#include <moiety/schedule/orders/zb_h1.hpp>
#include <moiety/schedule/orders/zb_h2.hpp>
#include <moiety/schedule/orders/zb_v.hpp>
#include <moiety/schedule/partition.hpp>
#include <moiety/schedule/rank_memory.hpp>
#include <moiety/schedule/rank_split.hpp>
#include <moiety/schedule/replay.hpp>
#include <moiety/schedule/schedule.hpp>
#include <moiety/schedule/shape.hpp>
#include <moiety/schedule/verify.hpp>
