// SPDX-License-Identifier: MIT
#pragma once

// Checks of attend's nodes in torch's autograd graph: higher derivatives, and the lifetime of nodes and saved tensors.

#include "flex_attention.h"

#include <attend/layers/conv_stack.h>
#include <attend/layers/self_attention1d.h>

#include <ATen/Parallel.h>
#include <c10/util/intrusive_ptr.h>
#include <pthread.h>
#include <torch/autograd.h>
#include <torch/csrc/autograd/function.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace conformance {

// LibTorch holds nodes by std::shared_ptr up to version 2.12, and by c10::intrusive_ptr since 2.13.

inline std::weak_ptr<torch::autograd::Node> weak_reference(const std::shared_ptr<torch::autograd::Node>& node) {
  return node;
}

template <class Node>
c10::weak_intrusive_ptr<Node> weak_reference(const c10::intrusive_ptr<Node>& node) {
  return c10::weak_intrusive_ptr<Node>(node);
}

using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

/// A tensor that reports whether its memory was freed.
struct Watched {
  std::shared_ptr<bool> is_freed = std::make_shared<bool>(false);
  torch::Tensor tensor;

  explicit Watched(const std::vector<std::int64_t>& sizes) {
    const torch::Tensor numbers = torch::randn(sizes);
    const auto count = static_cast<std::size_t>(numbers.numel());
    auto* memory = new float[count];
    std::memcpy(memory, numbers.const_data_ptr(), count * sizeof(float));
    tensor = torch::from_blob(memory, sizes, [memory, freed = is_freed](void*) {
      delete[] memory;
      *freed = true;
    });
    tensor.requires_grad_();
  }
};

/// A function that makes one node of attend, which saves the argument.
struct SavingFunction {
  std::string name;
  std::vector<std::int64_t> sizes;
  std::function<torch::Tensor(const torch::Tensor&)> run;
};

inline std::vector<SavingFunction> saving_functions() {
  const std::vector<std::int64_t> heads{1, 4, 8, 4}, signal{2, 3, 20};
  const auto attention = [](Backend backend) {
    return
        [backend](const torch::Tensor& x) { return attend::attention(x, x, x, AttentionOptions().backend(backend)); };
  };
  const torch::Tensor table = torch::randn({4, 8}).requires_grad_();
  attend::ConvStackOptions convolution_options(3, 8, 3);
  convolution_options.depth(2).backend(Backend::kCpu);
  try {
    attend::ConvStack(convolution_options)->explain(torch::randn(signal));
  } catch (const c10::NotImplementedError&) {
    convolution_options.backend(Backend::kAuto);  // our convolutions need AVX2
  }
  attend::ConvStack convolutions(convolution_options);
  attend::SelfAttention1d self_attention(attend::SelfAttention1dOptions(3, 4, 4).backend(Backend::kCpu));
  return {
      {"attention by kCpu", heads, attention(Backend::kCpu)},
      {"attention by kSdpa", heads, attention(Backend::kSdpa)},
      {"flex_attention by kCpu", heads,
       [table](const torch::Tensor& x) {
         return attend::flex_attention(x, x, x, TiltedByTable{table}, NotEveryThird{},
                                       AttentionOptions().backend(Backend::kCpu));
       }},
      {"materialize", heads, [table](const torch::Tensor& x) { return attend::materialize(TiltedByTable{table}, x); }},
      {"ConvStack", signal, [convolutions](const torch::Tensor& x) mutable { return convolutions(x); }},
      {"SelfAttention1d", signal, [self_attention](const torch::Tensor& x) mutable { return self_attention(x); }}};
}

/// Runs an action on a thread with a stack of 256 KiB, which a recursion over 20,000 nodes overflows.
inline void on_small_stack(std::function<void()> action) {
  pthread_attr_t attributes;
  pthread_t thread;
  require(pthread_attr_init(&attributes) == 0 && pthread_attr_setstacksize(&attributes, 256 * 1024) == 0,
          "the stack's size cannot be set");
  const auto call = [](void* given) -> void* {
    (*static_cast<std::function<void()>*>(given))();
    return nullptr;
  };
  const bool runs = pthread_create(&thread, &attributes, call, &action) == 0;
  require(runs, "the thread does not run");
  if (runs) pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

inline constexpr int kChain = 20'000;

/// A chain of nodes.
inline torch::Tensor chain_of(const torch::Tensor& first,
                              const std::function<torch::Tensor(const torch::Tensor&)>& run) {
  torch::Tensor last = first;
  for (int i = 0; i < kChain; ++i) last = run(last);
  return last;
}

/// Requires that a long chain is freed with a small stack, and that no node is left.
inline void require_chain_is_freed(const std::vector<std::int64_t>& sizes,
                                   const std::function<torch::Tensor(const torch::Tensor&)>& run) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);  // each call computes one number
  for (const bool with_backward : {false, true}) {
    const std::string what = with_backward ? "after a backward pass: " : "without a backward pass: ";
    Watched watched(sizes);
    torch::Tensor last = chain_of(watched.tensor, run);
    const auto weak = weak_reference(last.grad_fn()->getptr());
    if (with_backward) {
      last.sum().backward();
      require(watched.tensor.grad().isfinite().all().item<bool>(), what + "the gradient has not arrived");
    }
    watched.tensor.reset();
    require(!*watched.is_freed && !weak.expired(), what + "the chain does not keep its first tensor");
    on_small_stack([&] { last.reset(); });
    require(*watched.is_freed && weak.expired(), what + "the chain is not freed");
  }
  at::set_num_threads(threads);
}

/// A sum with random weights, which are the same for all tensors of these sizes.
inline torch::Tensor weighted_sum(const torch::Tensor& tensor) {
  torch::manual_seed(4);
  return (torch::randn(tensor.sizes(), tensor.options()) * tensor).sum();
}

/// Requires that second derivatives equal those of the dense formula, for every tensor of the case.
inline void require_second_derivatives(const Case& c, Backend backend,
                                       const std::function<Tensors(const Case&, const Inputs&, Backend)>& ours,
                                       const std::function<Tensors(const Case&, const Inputs&)>& dense) {
  torch::manual_seed(1);
  const Inputs numbers = inputs_of(c, at::kDouble);
  const auto derivatives = [&](const std::function<Tensors(const Inputs&)>& function) {
    Inputs leaves = numbers;
    Tensors differentiated;
    for (torch::Tensor* tensor : {&leaves.query, &leaves.key, &leaves.value, &leaves.mask, &leaves.slopes}) {
      if (!tensor->defined() || tensor->scalar_type() == torch::kBool) continue;
      *tensor = tensor->detach().clone().requires_grad_();
      differentiated.push_back(*tensor);
    }
    torch::Tensor loss = torch::zeros({}, torch::kDouble);
    for (const torch::Tensor& result : function(leaves))
      loss = loss + result.masked_fill(result.isneginf(), 0).pow(2).sum();
    const Tensors first =
        torch::autograd::grad({loss}, differentiated, {}, /*retain_graph=*/true, /*create_graph=*/true);
    torch::Tensor sum = torch::zeros({}, torch::kDouble);
    for (const torch::Tensor& gradient : first) sum = sum + weighted_sum(gradient);
    const Tensors second = torch::autograd::grad({sum}, differentiated);
    Tensors all = first;
    all.insert(all.end(), second.begin(), second.end());
    return all;
  };
  const Tensors results = derivatives([&](const Inputs& inputs) { return ours(c, inputs, backend); });
  const Tensors exact = derivatives([&](const Inputs& inputs) { return dense(c, inputs); });
  for (std::size_t i = 0; i < exact.size(); ++i)
    require_equal(c10::str(backend, ": derivative ", i + 1, " of ", exact.size()), results[i], exact[i]);
}

inline void graph_checks(Checks& checks) {
  Case c;
  checks.check("attention: second derivatives equal the dense formula's", [&] {
    for (const Backend backend : {Backend::kReference, Backend::kCpu, Backend::kSdpa})
      require_second_derivatives(c, backend, attend_to, dense_results);
  });
  checks.check("attention_with_lse: second derivatives with all options equal the dense formula's", [] {
    Case all;
    all.options = AttentionOptions().window({9, -1}).is_causal(true).softcap(3.0).scale(0.4);
    all.kv_heads = 2, all.length = 14, all.value_dim = 24, all.with_lse = true;
    all.slopes_sizes = {4}, all.mask_sizes = {2, 1, 14, 24};
    for (const Backend backend : {Backend::kReference, Backend::kCpu})
      require_second_derivatives(all, backend, attend_to, dense_results);
  });
  checks.check("flex_attention: second derivatives, also of a learned tensor, equal the dense formula's", [] {
    Case flex;
    flex.slopes_sizes = {4, 8};
    for (const Backend backend : {Backend::kReference, Backend::kCpu})
      require_second_derivatives(flex, backend, flex_attend_to, dense_flex_attention);
  });
  checks.check("attention: the third derivative equals the dense formula's", [] {
    const torch::Tensor x = torch::randn({1, 2, 6, 4}, torch::kDouble);
    const auto third = [&](const auto& function) {
      const torch::Tensor leaf = x.clone().requires_grad_();
      torch::Tensor derivative = function(leaf).pow(2);
      for (int order = 1; order <= 3; ++order)
        derivative = torch::autograd::grad({weighted_sum(derivative)}, {leaf}, {}, /*retain_graph=*/true,
                                           /*create_graph=*/true)[0];
      return derivative;
    };
    const torch::Tensor exact = third([](const torch::Tensor& leaf) {
      return dense_attention({leaf, leaf, leaf, {}, {}}, {}, geometry_of(6, 6, {}, {}, {})).output;
    });
    for (const Backend backend : {Backend::kCpu, Backend::kSdpa})
      require_equal(c10::str(backend), third([&](const torch::Tensor& leaf) {
                      return attend::attention(leaf, leaf, leaf, AttentionOptions().backend(backend));
                    }),
                    exact);
  });

  for (const SavingFunction& function : saving_functions()) {
    checks.check("node lifetime: " + function.name + ": a weak reference keeps no saved tensor", [&] {
      Watched watched(function.sizes);
      torch::Tensor argument = watched.tensor.view_as(watched.tensor);
      const WeakTensor weak_argument(argument.getIntrusivePtr());
      torch::Tensor output = function.run(argument);
      require(output.grad_fn() != nullptr, "the output has no node");
      const auto weak = weak_reference(output.grad_fn()->getptr());
      argument.reset();
      watched.tensor.reset();
      require(!*watched.is_freed && !weak.expired(), "the graph does not keep its tensors");
      output.reset();  // without a backward pass
      require(weak.expired(), "the node is not freed");
      require(weak_argument.expired(), "the saved tensor is not freed");
      require(*watched.is_freed, "the memory is not freed");
    });
  }
  checks.check("node lifetime: a node that is held keeps its saved tensors until its backward pass", [] {
    const torch::Tensor leaf = torch::randn({1, 1, 6, 4}).requires_grad_();
    torch::Tensor saved = leaf * 2.0;
    const WeakTensor weak(saved.getIntrusivePtr());
    torch::Tensor output = attend::attention(saved, saved, saved, AttentionOptions().backend(Backend::kCpu));
    const auto node = output.grad_fn()->getptr();
    saved.reset();
    require(!weak.expired(), "the node does not keep its input");
    output.sum().backward();
    require(weak.expired(), "the backward pass does not free the input");
    require(node != nullptr && leaf.grad().defined(), "there is no gradient");
  });
  checks.check("node lifetime: backward twice is right with retain_graph and an error without", [] {
    for (const Backend backend : {Backend::kCpu, Backend::kSdpa}) {
      const torch::Tensor x = torch::randn({1, 1, 6, 4}).requires_grad_();
      const torch::Tensor loss = attend::attention(x, x, x, AttentionOptions().backend(backend)).sum();
      const auto backward = [&](bool retain) { return torch::autograd::grad({loss}, {x}, {}, retain)[0]; };
      require(backward(true).equal(backward(false)), c10::str(backend, ": the second gradient differs"));
      require_throws<c10::Error>(c10::str(backend), "backward through the graph a second time",
                                 [&] { backward(false); });
    }
  });
  checks.check("node lifetime: an input or output changed in place is an error", [] {
    for (const Backend backend : {Backend::kCpu, Backend::kSdpa}) {
      const torch::Tensor leaf = torch::randn({1, 1, 6, 4}).requires_grad_();
      const torch::Tensor x = leaf * 2.0;
      const torch::Tensor output = attend::attention(x, x, x, AttentionOptions().backend(backend));
      const torch::Tensor loss = output.sum();
      {
        const torch::NoGradGuard no_grad;
        x.mul_(2.0);
      }
      require_throws<c10::Error>(c10::str(backend, ", the input"), "modified by an inplace operation",
                                 [&] { torch::autograd::grad({loss}, {leaf}); });
      const torch::Tensor doubled =
          attend::attention(leaf, leaf, leaf, AttentionOptions().backend(backend)).mul_(2.0).sum();
      require_throws<c10::Error>(c10::str(backend, ", the output"), "modified by an inplace operation",
                                 [&] { torch::autograd::grad({doubled}, {leaf}); });
    }
  });
  const torch::Tensor table = torch::zeros({1, 8}).requires_grad_();
  const attend::AttentionOptions by_kernel = AttentionOptions().backend(Backend::kCpu);
  checks.check("node lifetime: 20,000 nodes of attention are freed with a stack of 256 KiB", [&] {
    require_chain_is_freed({1, 1, 1, 1}, [&](const torch::Tensor& x) { return attend::attention(x, x, x, by_kernel); });
  });
  checks.check("node lifetime: 20,000 nodes of flex_attention are freed with a stack of 256 KiB", [&] {
    require_chain_is_freed({1, 1, 1, 1}, [&](const torch::Tensor& x) {
      return attend::flex_attention(x, x, x, TiltedByTable{table}, NotEveryThird{}, by_kernel);
    });
  });
  checks.check("node lifetime: 20,000 nodes of a score_mod are freed with a stack of 256 KiB", [&] {
    require_chain_is_freed({1, 1, 1, 1},
                           [&](const torch::Tensor& x) { return attend::materialize(TiltedByTable{table}, x); });
  });
}

}  // namespace conformance
