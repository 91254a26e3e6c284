# SPDX-License-Identifier: MIT
"""Tests packaging/vcpkg: the port's version, and its portfile with stand-ins for vcpkg's functions.

vcpkg itself is not run. The stand-ins implement its documented functions as far as the port needs them.
"""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

PROJECT = pathlib.Path(__file__).resolve().parents[2]
PORT = PROJECT / "packaging/vcpkg/attend"
CMAKE = os.environ["ATTEND_CMAKE"]

STAND_INS = """
function(vcpkg_cmake_configure)
  cmake_parse_arguments(arg "" SOURCE_PATH OPTIONS ${ARGN})
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -S "${arg_SOURCE_PATH}" -B "${BUILD}" "-DCMAKE_INSTALL_PREFIX=${CURRENT_PACKAGES_DIR}"
            "-DCMAKE_CXX_COMPILER=${COMPILER}" ${arg_OPTIONS}
    COMMAND_ERROR_IS_FATAL ANY)
endfunction()
function(vcpkg_cmake_install)
  execute_process(COMMAND "${CMAKE_COMMAND}" --install "${BUILD}" COMMAND_ERROR_IS_FATAL ANY)
endfunction()
function(vcpkg_cmake_config_fixup) # moves the package to share/<port>, and corrects the paths in it
  cmake_parse_arguments(arg "" CONFIG_PATH "" ${ARGN})
  file(RENAME "${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH}" "${CURRENT_PACKAGES_DIR}/share/${PORT}")
  file(REMOVE "${CURRENT_PACKAGES_DIR}/share/cmake")
  file(GLOB files "${CURRENT_PACKAGES_DIR}/share/${PORT}/*.cmake")
  foreach(file IN LISTS files)
    file(READ "${file}" text)
    if(file MATCHES "Config.cmake$")
      string(REPLACE "/../../../" "/../../" text "${text}")
    endif()
    string(REGEX REPLACE "(get_filename_component\\\\(_IMPORT_PREFIX \\"\\\\\\${_IMPORT_PREFIX}\\" PATH\\\\)\\n)" ""
           text "${text}")
    string(REPLACE "get_filename_component(_IMPORT_PREFIX \\"\\${CMAKE_CURRENT_LIST_FILE}\\" PATH)"
           "get_filename_component(_IMPORT_PREFIX \\"\\${CMAKE_CURRENT_LIST_DIR}/../..\\" ABSOLUTE)" text "${text}")
    file(WRITE "${file}" "${text}")
  endforeach()
endfunction()
function(vcpkg_fixup_pkgconfig)
endfunction()
function(vcpkg_install_copyright)
  cmake_parse_arguments(arg "" "" FILE_LIST ${ARGN})
  file(COPY_FILE "${arg_FILE_LIST}" "${CURRENT_PACKAGES_DIR}/share/${PORT}/copyright")
endfunction()
include("${PORTFILE}")
"""

CONSUMER = """
cmake_minimum_required(VERSION 3.22)
project(consumer LANGUAGES CXX)
find_package(attend REQUIRED)
get_target_property(folder attend::attend INTERFACE_INCLUDE_DIRECTORIES)
message("headers=${folder}.")
"""


class Vcpkg(unittest.TestCase):
    def test_the_port_has_the_version_of_the_headers(self):
        numbers = re.findall(r"#define ATTEND_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)",
                             (PROJECT / "include/attend/version.h").read_text())
        port = json.loads((PORT / "vcpkg.json").read_text())
        self.assertEqual((port["name"], port["version"]), ("attend", ".".join(numbers)))

    def test_find_package_finds_the_installation_of_the_portfile(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder).resolve()
            (folder / "run.cmake").write_text(STAND_INS)
            installed = folder / "installed"
            compiler = os.environ["ATTEND_COMPILER"]
            subprocess.run([CMAKE, f"-DPORTFILE={PORT}/portfile.cmake", "-DPORT=attend", f"-DBUILD={folder}/build",
                            f"-DCOMPILER={compiler}", f"-DCURRENT_PACKAGES_DIR={installed}", "-P",
                            folder / "run.cmake"], check=True, stdout=subprocess.DEVNULL)
            self.assertTrue((installed / "share/attend/copyright").is_file())
            self.assertTrue((installed / "include/attend/attend.h").is_file())

            (folder / "CMakeLists.txt").write_text(CONSUMER)
            result = subprocess.run([CMAKE, "-S", folder, "-B", folder / "consumer",
                                     f"-DCMAKE_PREFIX_PATH={installed};{os.environ['ATTEND_TORCH_ROOT']}",
                                     f"-DCMAKE_CXX_COMPILER={compiler}"],
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self.assertEqual(result.returncode, 0, result.stdout)
            self.assertRegex(result.stdout, rf"headers=.*{re.escape(str(installed))}/include\b")


if __name__ == "__main__":
    unittest.main()
