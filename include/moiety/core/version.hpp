// SPDX-License-Identifier: Apache-2.0
// The version of the library: semantic, read by CMake too. Before 1.0 a minor version may change the interface.
#pragma once

#define MOIETY_VERSION_MAJOR 0
#define MOIETY_VERSION_MINOR 1
#define MOIETY_VERSION_PATCH 0
