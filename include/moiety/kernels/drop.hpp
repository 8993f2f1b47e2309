// SPDX-License-Identifier: Apache-2.0
// Slots beyond the capacity of their experts lose their rows.
//
//   drop_beyond<Capacity>(engine, router, about, order, routes)   order is the permutation of all slots that routes has; its source
//                                                         tokens are left in disorder: build it again afterwards
//
// Dropped slots get the id dropped_from(e) and weight 0. See capacity/capacity.hpp for what is kept. On the host.
#pragma once

#include <moiety/kernels/host/drop.hpp>
