# SPDX-License-Identifier: MIT
#
# An overlay port that installs the attend that contains it. A project whose vcpkg.json requires "attend" uses it with
#   vcpkg install --overlay-ports=<folder of attend>/packaging/vcpkg

cmake_path(SET SOURCE_PATH NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../../..")
set(VCPKG_BUILD_TYPE release) # headers only

vcpkg_cmake_configure(SOURCE_PATH "${SOURCE_PATH}" OPTIONS -DATTEND_FIND_TORCH=OFF)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/attend)
vcpkg_fixup_pkgconfig()
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
