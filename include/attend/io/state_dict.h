// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/expanded.h>
#include <attend/io/detail/json.h>
#include <attend/io/detail/nearest_name.h>
#include <attend/io/detail/torch/file_view.h>
#include <attend/io/rename.h>
#include <attend/io/safetensors.h>
#include <attend/io/state_dict_type.h>
#include <attend/version.h>

#include <c10/core/ScalarType.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/module.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <set>
#include <sstream>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

namespace detail {

/// Adds the tensors of a module and its submodules in Python's order: parameters and buffers of a module, then those of
/// its children.
inline void add_state(const torch::nn::Module& module, const std::string& prefix, StateDict& dict) {
  for (const auto& parameter : module.named_parameters(/*recurse=*/false))
    dict.insert(prefix + parameter.key(), parameter.value().detach());
  for (const auto& buffer : module.named_buffers(/*recurse=*/false))
    dict.insert(prefix + buffer.key(), buffer.value().detach());
  for (const auto& child : module.named_children()) add_state(*child.value(), prefix + child.key() + ".", dict);
}

}  // namespace detail

/// The parameters and buffers of a module by their names, like `module.state_dict()` in Python.
///
/// @param module The module. A holder such as torch::nn::Linear is passed as `*linear`.
/// @return The tensors. They share the memory of the module, and require no gradient.
///
/// @code
/// attend::save_safetensors(attend::state_dict(*model), "model.safetensors");
/// @endcode
inline StateDict state_dict(const torch::nn::Module& module) {
  StateDict dict;
  detail::add_state(module, "", dict);
  return dict;
}

/// Options of load_state_dict().
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::LoadOptions().prefix("encoder.").convert_dtype(true)
/// @endcode
struct LoadOptions {
  /// Whether missing and unexpected names are errors. Wrong sizes and dtypes are always errors. Default: true.
  TORCH_ARG(bool, strict) = true;
  /// Loads only the tensors whose names begin with this text. The text is removed from the names. Default: all tensors.
  TORCH_ARG(std::string, prefix);
  /// Rules that are applied after the prefix is removed. Default: none.
  TORCH_ARG(std::vector<Rename>, rules);
  /// Whether tensors of other dtypes are converted. Conversions from complex to real, from floating-point to integer
  /// and from integer to bool are always errors. Default: false.
  TORCH_ARG(bool, convert_dtype) = false;
};

/// The names that load_state_dict() did not load. Both lists are empty unless LoadOptions::strict is false.
struct LoadReport {
  std::vector<std::string> missing;     ///< names of the module that the state dict lacks
  std::vector<std::string> unexpected;  ///< names of the state dict, after the rules, that the module lacks
};

namespace detail {

/// Compares a module with a state dict, and copies the tensors if all fit.
class StateDictLoader {
 public:
  /// is_unchanged: the tensors are views of a file, and no user can have changed them. So they may be read from the
  /// file again.
  StateDictLoader(const torch::nn::Module& module, const StateDict& dict, const LoadOptions& options,
                  bool is_unchanged = false)
      : options_(options), own_(state_dict(module)), is_unchanged_(is_unchanged) {
    StateDict chosen;
    for (const auto& item : dict)
      if (item.key().starts_with(options.prefix()))
        chosen.insert(item.key().substr(options.prefix().size()), item.value());
    TORCH_CHECK_VALUE(dict.is_empty() || !chosen.is_empty(), kName, ": no name begins with the prefix ",
                      detail::quoted(options.prefix()), ". The first name is ", detail::quoted(dict.front().key()));
    dict_ = renamed(chosen, options.rules());
  }

  /// Checks everything and then copies. The module is unchanged if it throws.
  LoadReport load() {
    compare();
    const bool is_nothing_loaded = copies_.empty() && !own_.is_empty() && !dict_.is_empty();
    if (options_.strict() || is_nothing_loaded) describe_names();
    if (!problems_.empty()) {
      std::string text;
      for (const std::string& problem : problems_) text += "\n- " + problem;
      TORCH_CHECK_VALUE(false, kName, ": the state dict does not fit the module:", text);
    }
    copy();
    return std::move(report_);
  }

 private:
  struct Copy {
    std::string name;
    torch::Tensor target, source;
  };

  static constexpr const char* kName = "attend::load_state_dict";
  static constexpr std::size_t kMaxLines = 10;  // of each kind of problem

  /// Finds what to copy, and all names and tensors that do not fit.
  void compare() {
    std::vector<std::string> missing;
    std::size_t mismatches = 0;
    for (const auto& item : own_) {
      const torch::Tensor* source = dict_.find(item.key());
      if (source == nullptr) {
        missing.push_back(item.key());
      } else if (const std::string problem = mismatch(item.value(), *source); problem.empty()) {
        add_copy({item.key(), item.value(), *source});
      } else if (++mismatches <= kMaxLines) {
        problems_.push_back(detail::quoted(item.key()) + ": " + problem);
      }
    }
    if (mismatches > kMaxLines) problems_.push_back(more(mismatches, "tensors that do not fit"));
    // A tensor with several names needs only one of them.
    for (std::string& name : missing)
      if (find_copy(own_[name]) == nullptr) report_.missing.push_back(std::move(name));
    for (const auto& item : dict_)
      if (!own_.contains(item.key())) report_.unexpected.push_back(item.key());
  }

  /// The reason why a tensor cannot be copied into a tensor of the module. Empty if it can.
  std::string mismatch(const torch::Tensor& own, const torch::Tensor& source) const {
    std::ostringstream text;
    if (!source.defined()) return "expected a tensor, found an undefined one";
    for (const torch::Tensor& tensor : {own, source}) {
      if (tensor.layout() != torch::kStrided) return "expected a dense tensor, found a sparse one";
      if (tensor.is_meta()) return "expected a tensor with data, found one on the device meta";
    }
    if (own.sizes() != source.sizes()) {
      text << "expected sizes " << own.sizes() << ", found " << source.sizes();
      if (source.dim() == 2 && own.sizes() == source.t().sizes())
        text << ". attend::Rename::transpose() would make them equal";
    } else if (own.scalar_type() != source.scalar_type()) {
      const bool can_convert = c10::canCast(source.scalar_type(), own.scalar_type());
      if (options_.convert_dtype() && can_convert) return "";
      text << "expected dtype " << own.scalar_type() << ", found " << source.scalar_type();
      if (can_convert) text << ". Pass LoadOptions().convert_dtype(true) to convert it";
    }
    return text.str();
  }

  void add_copy(const Copy& copy) {
    if (is_expanded(copy.target)) {
      if (!copy.target.equal(copy.source.to(copy.target.options())))
        problems_.push_back(detail::quoted(copy.name) +
                            ": expected the elements that the module has, because its tensor is expanded and cannot be "
                            "written, found others");
    } else if (const Copy* other = find_copy(copy.target); other == nullptr) {
      copies_of_[copy.target.storage().unsafeGetStorageImpl()].push_back(copies_.size());
      copies_.push_back(copy);
    } else if (!is_identical(other->source, copy.source)) {
      problems_.push_back(detail::quoted(other->name) + " and " + detail::quoted(copy.name) +
                          ": expected equal elements, because they are one tensor in the module, found different ones");
    }
  }

  /// The copy to the same memory as that of `target`, if there is one.
  const Copy* find_copy(const torch::Tensor& target) const {
    if (!target.has_storage()) return nullptr;
    const auto found = copies_of_.find(target.storage().unsafeGetStorageImpl());
    if (found == copies_of_.end()) return nullptr;
    for (const std::size_t i : found->second)
      if (is_same_memory(copies_[i].target, target)) return &copies_[i];
    return nullptr;
  }

  static bool is_same_memory(const torch::Tensor& a, const torch::Tensor& b) {
    return a.numel() > 0 && a.is_alias_of(b) && a.storage_offset() == b.storage_offset() && a.sizes() == b.sizes() &&
           a.strides() == b.strides() && a.scalar_type() == b.scalar_type();
  }

  /// Whether all bytes of the elements are equal, so that NaN equals itself.
  static bool is_identical(const torch::Tensor& a, const torch::Tensor& b) {
    const auto bytes = [](const torch::Tensor& tensor) { return tensor.contiguous().flatten().view(torch::kByte); };
    return a.scalar_type() == b.scalar_type() && (is_same_memory(a, b) || bytes(a).equal(bytes(b.to(a.device()))));
  }

  // ---- Names that only one side has --------------------------------------------------------------------------------

  void describe_names() {
    describe("missing", report_.missing, own_, "the state dict has ", report_.unexpected, dict_);
    describe("unexpected", report_.unexpected, dict_, "the module has ", report_.missing, own_);
    if (report_.missing.empty() || report_.unexpected.empty()) return;
    if (const std::string prefix = common_prefix(report_.unexpected, report_.missing); !prefix.empty())
      problems_.push_back("the names in the state dict begin with " + detail::quoted(prefix) +
                          ": pass LoadOptions().prefix(" + detail::quoted(prefix) + ")");
    if (const std::string prefix = common_prefix(report_.missing, report_.unexpected); !prefix.empty())
      problems_.push_back("the names in the module begin with " + detail::quoted(prefix) +
                          ": pass LoadOptions().rules({attend::Rename::pattern(\"^\", " + detail::quoted(prefix) +
                          ")})");
  }

  void describe(const std::string& what, const std::vector<std::string>& names, const StateDict& dict,
                const std::string& others_have, const std::vector<std::string>& others, const StateDict& other) {
    for (std::size_t i = 0; i < std::min(names.size(), kMaxLines); ++i) {
      std::vector<std::string> alike;  // names of tensors of the same sizes, if there are any
      for (const std::string& candidate : others)
        if (dict[names[i]].sizes() == other[candidate].sizes()) alike.push_back(candidate);
      std::string nearest = nearest_name(names[i], alike);
      if (nearest.empty()) nearest = nearest_name(names[i], others);
      problems_.push_back(what + " " + with_sizes(names[i], dict) +
                          (nearest.empty() ? "" : "; " + others_have + with_sizes(nearest, other)));
    }
    if (names.size() > kMaxLines) problems_.push_back(more(names.size(), what + " names"));
  }

  /// A prefix that turns each of `names` into one of the names in `longer`. Empty if there is none.
  static std::string common_prefix(const std::vector<std::string>& longer, const std::vector<std::string>& names) {
    const std::set<std::string> all(longer.begin(), longer.end());
    for (const std::string& first : longer) {
      if (!is_prefixed(first, names[0])) continue;
      const std::string prefix = first.substr(0, first.size() - names[0].size());
      if (std::all_of(names.begin(), names.end(), [&](const auto& name) { return all.count(prefix + name) == 1; }))
        return prefix;
    }
    return "";
  }

  static std::string with_sizes(const std::string& name, const StateDict& dict) {
    std::ostringstream text;
    text << detail::quoted(name) << ' ' << dict[name].sizes();
    return text.str();
  }

  static std::string more(std::size_t count, const std::string& what) {
    return "and " + std::to_string(count - kMaxLines) + " more " + what;
  }

  void copy() {
    const torch::NoGradGuard no_grad;
    for (Copy& copy : copies_)  // the dict may hold tensors of the module itself, by other names
      if (copies_of_.count(copy.source.storage().unsafeGetStorageImpl()) == 1) copy.source = copy.source.clone();
    for (const Copy& copy : copies_)
      if (!is_unchanged_ || !read_from_file(copy.source, copy.target)) copy.target.copy_(copy.source);
  }

  const LoadOptions& options_;
  StateDict own_, dict_;  // the dict with its new names
  bool is_unchanged_;
  LoadReport report_;
  std::vector<Copy> copies_;
  std::unordered_map<const c10::StorageImpl*, std::vector<std::size_t>> copies_of_;  // by the memory they change
  std::vector<std::string> problems_;
};

}  // namespace detail

/// Copies the tensors of a state dict into the parameters and buffers of a module, by their names.
///
/// All tensors are checked before the first is copied, so the module is unchanged if this function throws. The message
/// lists missing and unexpected names, each with the most similar name of the other side. It also lists tensors of
/// wrong sizes or dtypes.
///
/// The devices may differ. A tensor that the module has under several names (tied weights) needs only one of these
/// names in the state dict. If the state dict has several of them, their tensors must be equal.
///
/// @param module The module. A holder such as torch::nn::Linear is passed as `*linear`.
/// @param dict The tensors, as load_safetensors() and load_torch_file() return them.
/// @param options The options.
/// @return The names that were not loaded. Without strict(false) there are none.
/// @throws c10::ValueError if names, sizes or dtypes do not fit, or if a rule does not fit.
///
/// Differs from torch.nn.Module.load_state_dict:
/// - Dtypes are not converted silently.
/// - A call that throws never changes the module.
/// - A call that would load nothing throws, even with strict(false).
///
/// @code
/// attend::load_state_dict(*model, attend::load_safetensors("model.safetensors"));
/// @endcode
inline LoadReport load_state_dict(torch::nn::Module& module, const StateDict& dict, const LoadOptions& options = {}) {
  return detail::StateDictLoader(module, dict, options).load();
}

/// load_state_dict() for the tensors of a safetensors file. Large files need no memory besides that of the module,
/// because the bytes are read from the file into the parameters. Exception: tensors that are converted, joined,
/// transposed or on another device.
///
/// @param module As in load_state_dict() for a StateDict.
/// @param file The file, or several files with an index.
/// @param options As in load_state_dict() for a StateDict.
/// @return The names that were not loaded. Without strict(false) there are none.
/// @throws c10::ValueError as load_state_dict() for a StateDict.
/// @throws FileError if the file cannot be read. The module may then have some of the tensors.
///
/// @code
/// attend::load_state_dict(*model, attend::SafetensorsFile("model.safetensors"));
/// @endcode
inline LoadReport load_state_dict(torch::nn::Module& module, const SafetensorsFile& file,
                                  const LoadOptions& options = {}) {
  StateDict dict;
  for (const std::string& name : file.names()) dict.insert(name, file.tensor(name));
  return detail::StateDictLoader(module, dict, options, /*is_unchanged=*/true).load();
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
