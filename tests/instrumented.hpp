// SPDX-License-Identifier: Apache-2.0
// Whether a sanitizer slows this program down, so that times and long runs mean nothing.
#pragma once

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool instrumented = true;
#elif defined(__has_feature)
inline constexpr bool instrumented = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
inline constexpr bool instrumented = false;
#endif
