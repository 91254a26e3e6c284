// SPDX-License-Identifier: MIT
#include <attend/attention/backend.h>

#include <doctest/doctest.h>

#include <sstream>

using attend::Backend;

namespace {

template <class T>
std::string text(const T& value) {
  std::ostringstream stream;
  stream << value;
  return stream.str();
}

}  // namespace

TEST_CASE("backends and explanations print as they are written") {
  CHECK(text(Backend::kAuto) == "kAuto");
  CHECK(text(Backend::kReference) == "kReference");
  CHECK(text(Backend::kSdpa) == "kSdpa");
  CHECK(text(static_cast<Backend>(42)) == "Backend(42)");
  CHECK(text(attend::Explanation{Backend::kSdpa, "", ""}) == "kSdpa");
  CHECK(text(attend::Explanation{Backend::kReference, "kSdpa: no", "copies"}) == "kReference; kSdpa: no; copies");
}
