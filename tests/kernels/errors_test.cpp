// SPDX-License-Identifier: MIT
#include "support/call.h"

#include <attend/kernels.h>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <vector>

using attend::AttentionParams;
using attend::MaskType;
using attend::NumberType;
using attend::test::Call;

namespace {

/// The message of the std::invalid_argument that `action` throws; "" if it throws nothing.
template <class Action>
std::string message_of(const Action& action) {
  try {
    action();
  } catch (const std::invalid_argument& error) {
    CHECK(typeid(error) == typeid(std::invalid_argument));
    return error.what();
  } catch (const std::exception& error) {
    return std::string("another error: ") + error.what();
  }
  return "";
}

struct Wrong {
  const char* message;  // after "attend::kernels: "
  void (*change)(Call& call);
};

const std::int32_t kOffsets[] = {0, 2, 5}, kKeyOffsets[] = {0, 6, 6}, kFalling[] = {0, 4, 3}, kLate[] = {1, 2, 5},
                   kShort[] = {0, 2, 4}, kLengths[] = {6, 2}, kLongLengths[] = {6, 7}, kNegativeLengths[] = {-1, 6},
                   kTable[] = {0, 1, 1, 9}, kWrongTable[] = {0, 3, 1, 9};
const float kNumbers[4 * 5 * 6 * 2] = {};
const double kDoubles[8] = {};
double sums[240];

template <class T>
const void* misaligned(const T* data) {
  return reinterpret_cast<const char*>(data) + 1;
}

void set_packed(Call& call, const std::int32_t* query_offsets, const std::int32_t* key_offsets) {
  call.params.query_offsets = query_offsets;
  call.params.key_offsets = key_offsets;
  call.params.num_sequences = 2;
}

/// Three pages of 4 rows. Entry 0 needs two of them, entry 1 needs one.
void set_pages(Call& call, const std::int32_t* block_table) {
  call.params.key_lengths = kLengths;
  call.params.block_table = block_table;
  call.params.block_table_stride = 2;
  call.params.page_size = 4;
  call.params.num_pages = 3;
}

// N 2, H 4, G 2, L 5, S 6, D 8, Dv 3
const Wrong kWrongParams[] = {
    {"AttentionParams::dtype must be from 0 to 3, got 7", [](Call& c) { c.params.dtype = static_cast<NumberType>(7); }},
    {"AttentionParams::rotary_dim must be 0 on a CPU, got 4; rotate query and key first",
     [](Call& c) { c.params.rotary_dim = 4; }},
    {"AttentionParams::dtype must be kFloat32, kBFloat16 or kFloat64 on a CPU, got kFloat16",
     [](Call& c) { c.params.dtype = NumberType::kFloat16; }},
    {"AttentionParams::dtype must be kFloat32 or kBFloat16 for T = float, got kFloat64; call attention_forward<double>",
     [](Call& c) { c.params.dtype = NumberType::kFloat64; }},
    {"AttentionParams::mask_type must be from 0 to 3, got -1",
     [](Call& c) { c.params.mask_type = static_cast<MaskType>(-1); }},
    {"AttentionParams::batch_size must be from 0 to 1073741823, got -1", [](Call& c) { c.params.batch_size = -1; }},
    {"AttentionParams::num_heads must be from 1 to 1073741823, got 0", [](Call& c) { c.params.num_heads = 0; }},
    {"AttentionParams::num_kv_heads must be from 1 to 1073741823, got 0", [](Call& c) { c.params.num_kv_heads = 0; }},
    {"AttentionParams::num_kv_heads must be a divisor of num_heads (4), got 3",
     [](Call& c) { c.params.num_kv_heads = 3; }},
    {"AttentionParams::query_length must be from 0 to 1073741823, got 1073741824",
     [](Call& c) { c.params.query_length = 1 << 30; }},
    {"AttentionParams::key_length must be from 0 to 1073741823, got -2", [](Call& c) { c.params.key_length = -2; }},
    {"AttentionParams::head_dim must be from 1 to 1048576, got 0", [](Call& c) { c.params.head_dim = 0; }},
    {"AttentionParams::value_dim must be from 1 to 1048576, got 1048577",
     [](Call& c) { c.params.value_dim = (1 << 20) + 1; }},
    {"AttentionParams::batch_size must be such that a tensor (N, H, L or S, D or Dv) has at most 2^58 numbers, got "
     "1.47574e+20",
     [](Call& c) {
       c.params.batch_size = 1 << 17;
       c.params.num_heads = 1 << 10;
       c.params.query_length = c.params.head_dim = 1 << 20;
     }},
    {"AttentionParams::batch_size must be such that N · H · L and N · H · S are at most 2^47, got 4.32346e+17",
     [](Call& c) { c.params.batch_size = c.params.num_heads = 1 << 28; }},
    {"AttentionParams::query.data must be set, got a null pointer", [](Call& c) { c.params.query.data = nullptr; }},
    {"AttentionParams::key.data must be set, got a null pointer", [](Call& c) { c.params.key.data = nullptr; }},
    {"AttentionParams::value.data must be set, got a null pointer", [](Call& c) { c.params.value.data = nullptr; }},
    {"AttentionParams::query.data must be aligned to 4 bytes, got the address 0x…",
     [](Call& c) { c.params.query.data = misaligned(kNumbers); }},
    {"AttentionParams::key.data must be aligned to 2 bytes, got the address 0x…",
     [](Call& c) {
       c.params.dtype = NumberType::kBFloat16;
       c.params.key.data = misaligned(kNumbers);
     }},
    {"AttentionParams::value.data must be aligned to 8 bytes, got the address 0x…",
     [](Call& c) {
       c.params.dtype = NumberType::kFloat64;
       c.params.value.data = misaligned(kDoubles);
     }},
    {"AttentionParams::scale must be finite in float32, got inf", [](Call& c) { c.params.scale = INFINITY; }},
    {"AttentionParams::scale must be finite in float32, got nan", [](Call& c) { c.params.scale = NAN; }},
    {"AttentionParams::scale must be finite in float32, got 1e+39", [](Call& c) { c.params.scale = 1e39; }},
    {"AttentionParams::softcap must be 0 (none), or positive and finite in float32, got -1",
     [](Call& c) { c.params.softcap = -1; }},
    {"AttentionParams::softcap must be 0 (none), or positive and finite in float32, got 1e-40",
     [](Call& c) { c.params.softcap = 1e-40; }},
    {"AttentionParams::softcap must be 0 (none), or positive and finite in float64, got nan",
     [](Call& c) {
       c.params.dtype = NumberType::kFloat64;
       c.params.softcap = NAN;
     }},
    {"AttentionParams::dropout must be a probability from 0 to 1, got 1.5", [](Call& c) { c.params.dropout = 1.5; }},
    {"AttentionParams::dropout must be a probability from 0 to 1, got nan", [](Call& c) { c.params.dropout = NAN; }},
    {"AttentionParams::alibi_slopes must be aligned to 4 bytes, got the address 0x…",
     [](Call& c) { c.params.alibi_slopes = misaligned(kNumbers); }},
    {"AttentionParams::mask_type must be kNone, kBool or kAdded for float64 tensors, got kAddedBFloat16",
     [](Call& c) {
       c.params.dtype = NumberType::kFloat64;
       c.params.mask_type = MaskType::kAddedBFloat16;
     }},
    {"AttentionParams::attn_mask.data must be set, got a null pointer",
     [](Call& c) { c.params.mask_type = MaskType::kBool; }},
    {"AttentionParams::attn_mask.data must be aligned to 2 bytes, got the address 0x…",
     [](Call& c) {
       c.params.mask_type = MaskType::kAddedBFloat16;
       c.params.attn_mask.data = misaligned(kNumbers);
     }},
    {"AttentionParams::window_left must be at least 0, or -1 (unlimited), got -2",
     [](Call& c) { c.params.window_left = -2; }},
    {"AttentionParams::window_right must be at least 0, or -1 (unlimited), got -7",
     [](Call& c) { c.params.window_right = -7; }},
    {"AttentionParams::num_sequences must be from 0 to 1073741823, got -1",
     [](Call& c) { c.params.num_sequences = -1; }},
    {"AttentionParams::query_offsets must be set, got a null pointer", [](Call& c) { c.params.num_sequences = 1; }},
    {"AttentionParams::key_offsets must be set, got a null pointer", [](Call& c) { set_packed(c, kOffsets, nullptr); }},
    {"AttentionParams::query_offsets must end with query_length (5), got 0 at index 0",
     [](Call& c) { c.params.query_offsets = kOffsets; }},
    {"AttentionParams::query_offsets must begin with 0, got 1", [](Call& c) { set_packed(c, kLate, kKeyOffsets); }},
    {"AttentionParams::query_offsets must never decrease, got 3 at index 2 after 4",
     [](Call& c) { set_packed(c, kFalling, kKeyOffsets); }},
    {"AttentionParams::query_offsets must end with query_length (5), got 4 at index 2",
     [](Call& c) { set_packed(c, kShort, kKeyOffsets); }},
    {"AttentionParams::key_offsets must end with key_length (6), got 5 at index 2",
     [](Call& c) { set_packed(c, kOffsets, kOffsets); }},
    {"AttentionParams::key_lengths must be from 0 to key_length (6), got 7 at index 1",
     [](Call& c) { c.params.key_lengths = kLongLengths; }},
    {"AttentionParams::key_lengths must be from 0 to key_length (6), got -1 at index 0",
     [](Call& c) { c.params.key_lengths = kNegativeLengths; }},
    {"AttentionParams::key_lengths must be aligned to 4 bytes, got the address 0x…",
     [](Call& c) { c.params.key_lengths = static_cast<const std::int32_t*>(misaligned(kLengths)); }},
    {"AttentionParams::key_lengths must be null in a packed batch, got a pointer",
     [](Call& c) {
       set_packed(c, kOffsets, kKeyOffsets);
       c.params.key_lengths = kLengths;
     }},
    {"AttentionParams::key_lengths must be set with block_table, got a null pointer",
     [](Call& c) { c.params.block_table = kTable; }},
    {"AttentionParams::block_table must be aligned to 4 bytes, got the address 0x…",
     [](Call& c) { set_pages(c, static_cast<const std::int32_t*>(misaligned(kTable))); }},
    {"AttentionParams::block_table must have numbers from 0 to num_pages - 1 (2), got 3 for page 1 of batch entry 0",
     [](Call& c) { set_pages(c, kWrongTable); }},
    {"AttentionParams::page_size must be from 1 to 2147483647, got 0",
     [](Call& c) {
       set_pages(c, kTable);
       c.params.page_size = 0;
     }},
    {"AttentionParams::num_pages must be from 0 to 2147483647, got -1",
     [](Call& c) {
       set_pages(c, kTable);
       c.params.num_pages = -1;
     }},
};

const Wrong kWrongOutputs[] = {
    {"AttentionOutputs::output must be set, got a null pointer", [](Call& c) { c.outputs.output.data = nullptr; }},
    {"AttentionOutputs::output must be aligned to 4 bytes, got the address 0x…",
     [](Call& c) { c.outputs.output.data = const_cast<void*>(misaligned(kNumbers)); }},
    {"AttentionOutputs::output.strides must be such that no two entries of {2, 4, 5, 3} share memory, got {0, 15, 3, "
     "1}",
     [](Call& c) { c.outputs.output.strides[0] = 0; }},
    {"AttentionOutputs::output.strides must be such that no two entries of {2, 4, 5, 3} share memory, got {60, 3, 3, "
     "1}",
     [](Call& c) { c.outputs.output.strides[1] = 3; }},
    {"AttentionOutputs::output.strides must be such that no two entries of {2, 4, 5, 3} share memory, got {60, 15, 2, "
     "-1}",
     [](Call& c) {
       c.outputs.output.strides[2] = 2;
       c.outputs.output.strides[3] = -1;
     }},
    {"AttentionOutputs::output.strides must be such that no two entries of {2, 4, 5, 3} share memory, got "
     "{9223372036854775807, -9223372036854775808, 3, 1}",
     [](Call& c) {
       c.outputs.output.strides[0] = std::numeric_limits<std::int64_t>::max();
       c.outputs.output.strides[1] = std::numeric_limits<std::int64_t>::min();
     }},
    {"AttentionOutputs::log_sum_exp must be aligned to 4 bytes, got the address 0x…",
     [](Call& c) { c.outputs.log_sum_exp = const_cast<void*>(misaligned(kNumbers)); }},
    {"AttentionOutputs::saved must be aligned to 4 bytes, got the address 0x…",
     [](Call& c) { c.outputs.saved = const_cast<void*>(misaligned(kNumbers)); }},
    {"AttentionOutputs::saved_bytes must be at least 12288, got 12287", [](Call& c) { c.outputs.saved_bytes = 12287; }},
};

const Wrong kWrongGradients[] = {
    {"AttentionParams::block_table must be null in a backward pass, got a pointer",
     [](Call& c) { set_pages(c, kTable); }},
    {"AttentionOutputs::saved must be set, got a null pointer", [](Call& c) { c.outputs.saved = nullptr; }},
    {"AttentionOutputs::saved_bytes must be at least 12288, got 0", [](Call& c) { c.outputs.saved_bytes = 0; }},
    {"AttentionGradients::output.data must be set, got a null pointer",
     [](Call& c) { c.gradients.output.data = nullptr; }},
    {"AttentionGradients::log_sum_exp must be aligned to 4 bytes, got the address 0x…",
     [](Call& c) { c.gradients.log_sum_exp = misaligned(kNumbers); }},
    {"AttentionGradients::query must be set, got a null pointer", [](Call& c) { c.gradients.query.data = nullptr; }},
    {"AttentionGradients::key must be set, got a null pointer", [](Call& c) { c.gradients.key.data = nullptr; }},
    {"AttentionGradients::value must be set, got a null pointer", [](Call& c) { c.gradients.value.data = nullptr; }},
    {"AttentionGradients::key.strides must be such that no two entries of {2, 2, 6, 8} share memory, got {96, 48, 0, "
     "1}",
     [](Call& c) { c.gradients.key.strides[2] = 0; }},
    {"AttentionGradients::value.strides must be such that no two entries of {2, 2, 6, 3} share memory, got {36, 18, 3, "
     "0}",
     [](Call& c) { c.gradients.value.strides[3] = 0; }},
    {"AttentionGradients::attn_mask.data must be null without an added mask, got a pointer",
     [](Call& c) {
       c.gradients.attn_mask = {sums, 30};
     }},
    {"AttentionGradients::attn_mask.size must be 120, got 240",
     [](Call& c) {
       c.params.mask_type = MaskType::kAdded;
       c.params.attn_mask = {kNumbers, {0, 30, 6, 1}};
       c.gradients.attn_mask = {sums, 240};
     }},
    {"AttentionGradients::alibi_slopes.data must be null without alibi_slopes, got a pointer",
     [](Call& c) {
       c.gradients.alibi_slopes = {sums, 4};
     }},
    {"AttentionGradients::alibi_slopes.size must be 4, got 8",
     [](Call& c) {
       c.params.alibi_slopes = kNumbers;
       c.gradients.alibi_slopes = {sums, 8};
     }},
    {"AttentionGradients::alibi_slopes must be aligned to 8 bytes, got the address 0x…",
     [](Call& c) {
       c.params.alibi_slopes = kNumbers;
       c.gradients.alibi_slopes = {reinterpret_cast<double*>(reinterpret_cast<char*>(sums) + 4), 4};
     }},
    {"AttentionGradients::score_tensors must be empty without a score_mod, got 1 gradients",
     [](Call& c) {
       c.gradients.score_tensors = {{sums, 4}};
     }},
};

/// Whether the message is the expected one, in which 0x… is any address.
bool is_message(std::string message, const std::string& expected) {
  if (const std::size_t address = expected.find("0x…"); address != std::string::npos)
    message = message.substr(0, std::string("attend::kernels: ").size() + address) + "0x…";
  return message == "attend::kernels: " + expected;
}

void check(const Wrong& wrong, const std::string& message) {
  CAPTURE(message);
  CAPTURE(wrong.message);
  CHECK(is_message(message, wrong.message));
}

/// Whether nothing was written: all is NaN as before.
bool is_untouched(const Call& call) {
  for (const std::vector<double>& numbers : call.written())
    for (const double number : numbers)
      if (!std::isnan(number)) return false;
  return true;
}

struct OneTable {
  attend::TensorView table;
  template <class T>
  T operator()(T score, attend::Coordinate at) const {
    return score + table.read<T>(at.head);
  }
  auto tensors() { return std::tie(table); }
};

}  // namespace

TEST_CASE("kernels: an error of AttentionParams names the member, the rule and the value, and nothing is written") {
  for (const Wrong& wrong : kWrongParams) {
    Call call(2, 4, 2, 5, 6, 8, 3);
    wrong.change(call);
    check(wrong, message_of([&] { attend::kernels::saved_bytes(call.params); }));
    check(wrong, message_of([&] { call.forward(); }));
    check(wrong, message_of([&] { call.backward(); }));
    check(wrong, message_of([&] {
            attend::kernels::flex_attention_forward(call.params, attend::Unchanged{}, attend::Causal{}, call.outputs);
          }));
    CHECK(is_untouched(call));
  }
}

TEST_CASE("kernels: the dtype must be one that T computes") {
  Call call(2, 4, 2, 5, 6, 8, 3);
  CHECK(message_of([&] { attend::kernels::attention_forward<double>(call.params, call.outputs); }) ==
        "attend::kernels: AttentionParams::dtype must be kFloat64 for T = double, got kFloat32");
  call.params.dtype = NumberType::kBFloat16;
  CHECK(message_of([&] { attend::kernels::saved_bytes<double>(call.params); }) ==
        "attend::kernels: AttentionParams::dtype must be kFloat64 for T = double, got kBFloat16");
  CHECK(is_untouched(call));
}

TEST_CASE("kernels: an error of AttentionOutputs names the member, the rule and the value, and nothing is written") {
  for (const Wrong& wrong : kWrongOutputs) {
    Call call(2, 4, 2, 5, 6, 8, 3);
    wrong.change(call);
    check(wrong, message_of([&] { call.forward(); }));
    check(wrong, message_of([&] { call.backward(); }));
    CHECK(is_untouched(call));
  }
}

TEST_CASE("kernels: an error of AttentionGradients names the member, the rule and the value, and nothing is written") {
  for (const Wrong& wrong : kWrongGradients) {
    Call call(2, 4, 2, 5, 6, 8, 3);
    wrong.change(call);
    check(wrong, message_of([&] { call.backward(); }));
    CHECK(is_untouched(call));
  }
}

TEST_CASE(
    "kernels: a valid call throws nothing: without saved memory and log-sum-exp, with a broadcast output of size 1") {
  Call call(2, 4, 2, 5, 6, 8, 3);
  call.outputs.log_sum_exp = nullptr;
  call.outputs.saved = nullptr;
  CHECK(message_of([&] { call.forward(); }) == "");
  Call one(1, 1, 1, 5, 6, 8, 3);
  one.outputs.output.strides[0] = one.outputs.output.strides[1] = 0;
  CHECK(message_of([&] { one.forward(); }) == "");
  CHECK(message_of([&] { one.backward(); }) == "");
}

TEST_CASE("kernels: errors of the tables of a score_mod: number of gradients, sizes, dtype") {
  Call call(2, 4, 2, 5, 6, 8, 3);
  std::vector<char> saved(static_cast<std::size_t>(
      attend::kernels::flex_saved_bytes(call.params, OneTable{{kNumbers, {4}}}, attend::EveryKey{})));
  call.outputs.saved = saved.data();
  call.outputs.saved_bytes = static_cast<std::int64_t>(saved.size());
  const auto message = [&](const attend::TensorView& view) {
    return message_of([&] {
      attend::kernels::flex_attention_backward(call.params, OneTable{view}, attend::EveryKey{}, call.outputs,
                                               call.gradients);
    });
  };
  attend::kernels::flex_attention_forward(call.params, OneTable{{kNumbers, {4}}}, attend::EveryKey{}, call.outputs);
  CHECK(message({kNumbers, {4}}) == "");
  CHECK(message({kDoubles, {4}}) ==
        "attend::kernels: a TensorView of the score_mod's tensors() must be of float in a "
        "float32 or bfloat16 call, got double");
  CHECK(message({}) ==
        "attend::kernels: a TensorView of the score_mod's tensors() must be of float in a float32 or "
        "bfloat16 call, got an unset view");
  call.gradients.score_tensors = {{sums, 3}};
  CHECK(message({kNumbers, {4}}) == "attend::kernels: AttentionGradients::score_tensors[0].size must be 4, got 3");
  call.gradients.score_tensors = {{sums, 4}, {sums, 4}};
  CHECK(message({kNumbers, {4}}) ==
        "attend::kernels: AttentionGradients::score_tensors must be empty, or one for each "
        "of the score_mod's tensors() (1), got 2 gradients");
  call.gradients.score_tensors = {{}};  // not wanted
  CHECK(message({kNumbers, {4}}) == "");
}

TEST_CASE_TEMPLATE("TensorView, IntegerView: errors of the constructors from memory", V, float, std::int32_t) {
  using View = std::conditional_t<std::is_same_v<V, float>, attend::TensorView, attend::IntegerView>;
  const std::string name = std::is_same_v<V, float> ? "attend::TensorView" : "attend::IntegerView";
  const V numbers[4] = {}, *const null = nullptr;
  const auto message = [](const V* data, std::initializer_list<std::int64_t> sizes) {
    return message_of([&] { View(data, sizes); });
  };
  CHECK(message(numbers, {1, 2, 3, 4, 5}) == name + ": sizes must be up to 4 numbers, each at least 0");
  CHECK(message(numbers, {2, -1}) == name + ": sizes must be up to 4 numbers, each at least 0");
  CHECK(message(numbers, {1 << 30, 1 << 30, 1 << 30}) == name + ": sizes must have at most 2^58 numbers");
  CHECK(message(null, {2}) == name + ": data must not be null");
  CHECK(message(null, {2, 0}) == "");
  CHECK(message(numbers, {}) == "");
}

TEST_CASE("TensorView: reads of a view without numbers give NaN and touch no memory") {
  const attend::TensorView view(reinterpret_cast<const float*>(8), {3, 0});  // an address that nobody may read
  volatile std::int64_t row = 0, column = 0;                                 // else the compiler drops the read
  CHECK(std::isnan(view.read<attend::Real<float>>(row, column).value));
  row = 2;
  column = 1;
  CHECK(std::isnan(view.read<attend::Real<float>>(row, column).value));
}
