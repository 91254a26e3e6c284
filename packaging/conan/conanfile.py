# SPDX-License-Identifier: MIT
"""Packages the attend that contains this recipe: conan create packaging/conan

LibTorch is not a requirement of the package. A project that uses attend passes it with CMAKE_PREFIX_PATH.
"""

import re
from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy


class Attend(ConanFile):
    name = "attend"
    description = "Attention layers for LibTorch"
    license = "MIT"
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    no_copy_source = True

    @property
    def _project(self):
        return Path(self.recipe_folder).parents[1]

    def set_version(self):
        text = (self._project / "include" / "attend" / "version.h").read_text()
        self.version = ".".join(re.findall(r"#define ATTEND_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))

    def export_sources(self):
        for pattern in ("CMakeLists.txt", "LICENSE", "cmake/*", "include/*", "src/*"):
            copy(self, pattern, self._project, self.export_sources_folder)

    def validate(self):
        check_min_cppstd(self, 20)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["ATTEND_FIND_TORCH"] = False
        toolchain.generate()

    def build(self):
        CMake(self).configure()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, Path(self.package_folder) / "licenses")

    def package_id(self):
        self.info.clear()

    def package_info(self):
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
        self.cpp_info.builddirs = ["share/cmake/attend"]
        # find_package(attend) must read attend's own CMake package, which searches for LibTorch.
        self.cpp_info.set_property("cmake_find_mode", "none")
