// SPDX-License-Identifier: Apache-2.0
// The library for one layer: components, layer, losses, on the host back end. Needs a C++20 compiler and threads.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/batch/batch.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/row.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/core/random.hpp>
#include <moiety/dispatcher/local.hpp>
#include <moiety/experts/activation.hpp>
#include <moiety/experts/mlp.hpp>
#include <moiety/kernels/combine.hpp>
#include <moiety/kernels/fill_normal.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/permute.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/describe.hpp>
#include <moiety/layer/moe_layer.hpp>
#include <moiety/layer/options.hpp>
#include <moiety/layer/parameters.hpp>
#include <moiety/layer/report.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/load_balance.hpp>
#include <moiety/losses/router_z.hpp>
#include <moiety/mesh/context.hpp>
#include <moiety/mesh/layout.hpp>
#include <moiety/pipeline/ledger.hpp>
#include <moiety/router/router.hpp>
