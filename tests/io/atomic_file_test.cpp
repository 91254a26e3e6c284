// SPDX-License-Identifier: MIT
#include <attend/io/detail/atomic_file.h>

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

using attend::FileError;
using attend::detail::AtomicFile;

namespace {

/// A new folder that is removed at the end of the scope.
struct Folder {
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "attend_XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }

  std::string file(const std::string& name) const { return (path / name).string(); }

  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path)) names.push_back(entry.path().filename());
    return names;
  }

  std::filesystem::path path;
};

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void save(const std::string& path, const std::string& text) {
  AtomicFile file("save", path);
  file.write(text.data(), text.size());
  file.commit();
}

std::string error_of(const std::string& path) {
  try {
    save(path, "new");
  } catch (const FileError& error) {
    CHECK(error.path() == path);
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace

TEST_CASE("AtomicFile: the path has the old bytes until commit(), and the new bytes after it") {
  const Folder folder;
  const std::string path = folder.file("weights");
  save(path, "old and longer");
  AtomicFile file("save", path);
  file.write("ne", 2);
  file.write("w", 1);
  CHECK(contents(path) == "old and longer");
  file.commit();
  CHECK(contents(path) == "new");
  CHECK(folder.names() == std::vector<std::string>{"weights"});
}

TEST_CASE("AtomicFile: without commit() the old file stays, and the temporary file is removed") {
  const Folder folder;
  const std::string path = folder.file("weights");
  save(path, "old");
  {
    AtomicFile file("save", path);
    file.write("new", 3);
    CHECK(folder.names().size() == 2);
  }
  CHECK(contents(path) == "old");
  CHECK(folder.names() == std::vector<std::string>{"weights"});
}

TEST_CASE("AtomicFile: a new file has the permissions of any new file") {
  const Folder folder;
  const ::mode_t before = ::umask(027);
  save(folder.file("weights"), "new");
  ::umask(before);
  struct stat status;
  REQUIRE(::stat(folder.file("weights").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0640);
}

TEST_CASE("AtomicFile: a path without a folder means the current folder") {
  const Folder folder;
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path);
  save("weights", "new");
  std::filesystem::current_path(before);
  CHECK(contents(folder.file("weights")) == "new");
}

TEST_CASE("AtomicFile: a symbolic link stays, and its target is replaced") {
  const Folder folder;
  std::filesystem::create_directory(folder.path / "other");
  save(folder.file("other/weights"), "old");
  std::filesystem::create_symlink("other/weights", folder.path / "link");
  save(folder.file("link"), "new");
  CHECK(std::filesystem::is_symlink(folder.path / "link"));
  CHECK(contents(folder.file("other/weights")) == "new");
}

TEST_CASE("AtomicFile: what is not a regular file is never replaced") {
  const Folder folder;
  std::filesystem::create_directory(folder.path / "folder");
  REQUIRE(::mkfifo(folder.file("pipe").c_str(), 0600) == 0);
  for (const std::string& path : {folder.file("folder"), folder.file("pipe"), std::string("/dev/null")}) {
    CHECK(error_of(path) == "save: " + path + ": cannot replace it, because it is not a regular file");
    CHECK(std::filesystem::exists(path));
  }
}

TEST_CASE("AtomicFile: errors name the function, the path and the reason") {
  const Folder folder;
  std::filesystem::create_symlink("loop", folder.path / "loop");
  std::filesystem::create_symlink("missing", folder.path / "dangling");
  save(folder.file("file"), "old");
  const struct {
    std::string name, message;
  } cases[] = {
      {"missing/weights", "cannot create a temporary file in its folder: No such file or directory"},
      {"file/weights", "cannot create a temporary file in its folder: Not a directory"},
      {std::string(255, 'x'), "cannot create a temporary file in its folder: File name too long"},
      {"dangling", "cannot follow the symbolic link: No such file or directory"},
      {"loop", "cannot follow the symbolic link: Too many levels of symbolic links"},
  };
  for (const auto& [name, message] : cases) {
    const std::string path = folder.file(name);
    CHECK(error_of(path) == "save: " + path + ": " + message);
  }
  CHECK(folder.names().size() == 3);
}
