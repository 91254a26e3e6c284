// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/function.h>

#include <memory>
#include <type_traits>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The type of LibTorch's pointers to nodes of its graph: std::shared_ptr up to version 2.12, c10::intrusive_ptr from
/// 2.13 on.
using NodePointer = decltype(std::declval<torch::autograd::Node&>().getptr());

/// Hands `allocated`, the result of a new-expression, to LibTorch's graph.
template <class Node>
auto make_node(Node* allocated) {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<torch::autograd::Node>>) {
    // deleteNode frees a long chain of nodes without recursion. It is found by argument-dependent lookup, so this line
    // also compiles with LibTorch versions that lack it.
    return std::shared_ptr<Node>(allocated, [](Node* node) { deleteNode(node); });
  } else {
    return c10::intrusive_ptr<Node>::unsafe_steal_from_new(allocated);
  }
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
