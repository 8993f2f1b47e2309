# SPDX-License-Identifier: Apache-2.0
# Lets nvcc compile our own tests and benchmarks. MOIETY_CUDA_ARCHITECTURES names the devices; `native` asks the driver
# for those of this machine, and means 80 and 90a where there is none.
if(NOT CUDAToolkit_FOUND)
  message(FATAL_ERROR "MOIETY_CUDA needs the CUDA toolkit, and none was found: set CUDAToolkit_ROOT, or MOIETY_CUDA=OFF.")
endif()
set(MOIETY_CUDA_ARCHITECTURES native CACHE STRING "Devices that tests and benchmarks are compiled for: 90a;80, or native")

function(moiety_native_architectures result)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader OUTPUT_VARIABLE text
                  ERROR_QUIET RESULT_VARIABLE status)
  set(found "")
  if(status EQUAL 0)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]+" found "${text}")
    list(TRANSFORM found REPLACE "\\." "")
    list(TRANSFORM found REPLACE "^90$" "90a")
    list(REMOVE_DUPLICATES found)
  endif()
  if(NOT found)
    set(found 80 90a)
  endif()
  set(${result} ${found} PARENT_SCOPE)
endfunction()

set(moiety_architectures ${MOIETY_CUDA_ARCHITECTURES})
if(moiety_architectures STREQUAL native)
  moiety_native_architectures(moiety_architectures)
endif()
list(TRANSFORM moiety_architectures APPEND -real)
set(CMAKE_CUDA_ARCHITECTURES ${moiety_architectures})
message(STATUS "moiety: CUDA tests and benchmarks for ${CMAKE_CUDA_ARCHITECTURES}")
if(NOT CMAKE_CUDA_COMPILER AND CUDAToolkit_NVCC_EXECUTABLE)
  set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
endif()
enable_language(CUDA)

# How our own CUDA sources are compiled; never exported.
add_library(moiety_dev_cuda INTERFACE)
target_link_libraries(moiety_dev_cuda INTERFACE moiety::cuda)
target_compile_options(
  moiety_dev_cuda
  INTERFACE
    "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-lineinfo -Xcompiler -Wall,-Wextra,-Wconversion,-Wshadow>")
# The host's side of a test must round as the device does: with a fused multiply-add.
if(MOIETY_NATIVE)
  target_compile_options(moiety_dev_cuda INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xcompiler -march=native>")
endif()
