# SPDX-License-Identifier: Apache-2.0
# Headers, exported target, and a versioned package whose components are known by name.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/moiety)
install(TARGETS moiety EXPORT moietyTargets FILE_SET HEADERS)
install(EXPORT moietyTargets NAMESPACE moiety:: DESTINATION ${package_dir})
install(TARGETS moiety_cuda EXPORT moietyCudaTargets FILE_SET HEADERS)
install(EXPORT moietyCudaTargets NAMESPACE moiety:: DESTINATION ${package_dir})
if(TARGET moiety_mpi)
  install(TARGETS moiety_mpi EXPORT moietyMpiTargets FILE_SET HEADERS)
  install(EXPORT moietyMpiTargets NAMESPACE moiety:: DESTINATION ${package_dir})
endif()
if(TARGET moiety_nccl)
  install(TARGETS moiety_nccl EXPORT moietyNcclTargets FILE_SET HEADERS)
  install(EXPORT moietyNcclTargets NAMESPACE moiety:: DESTINATION ${package_dir})
endif()

configure_package_config_file(cmake/moietyConfig.cmake.in ${PROJECT_BINARY_DIR}/moietyConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/moietyConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/moietyConfig.cmake ${PROJECT_BINARY_DIR}/moietyConfigVersion.cmake
              cmake/moietyInstructionSet.cmake cmake/FindNCCL.cmake
        DESTINATION ${package_dir})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
