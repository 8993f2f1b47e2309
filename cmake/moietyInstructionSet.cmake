# SPDX-License-Identifier: Apache-2.0
# One line, once a build, for a consumer whose compiler flags leave most of the processor unused.
include_guard(GLOBAL)

get_directory_property(moiety_directory_options DIRECTORY ${CMAKE_SOURCE_DIR} COMPILE_OPTIONS)
string(TOUPPER "${CMAKE_BUILD_TYPE}" moiety_build_type)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$"
   AND NOT "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${moiety_build_type}} ${moiety_directory_options}"
           MATCHES "-march=(native|x86-64-v[34]|[a-wyz])|-mavx|-xHost|/arch:AVX")
  message(STATUS "moiety: compiling for plain x86-64; -march=native (or -march=x86-64-v3) makes its kernels about 4x faster")
endif()
