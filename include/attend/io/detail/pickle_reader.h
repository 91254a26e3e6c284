// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/json.h>
#include <attend/io/file_error.h>
#include <attend/version.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The values of a pickle that torch.save wrote: dicts, lists, tuples, numbers, strings and tensors.
///
/// A pickle is a program for a stack machine. The reader knows the opcodes that make such values, and the functions of
/// torch that make tensors. It calls no function of Python: any other opcode or function is a FileError that names it.
/// The reader is not recursive. It takes at most 40 bytes of memory for each byte of the pickle.
class PickleReader {
 public:
  /// A value: its index in the order of creation.
  using Value = std::uint32_t;

  /// The kind of a value. kNumber is a float, or an int of more than 64 bits. Its value is not kept.
  enum class Kind : std::uint8_t {
    kNone,
    kBool,
    kInt,
    kNumber,
    kString,
    kTuple,
    kList,
    kDict,
    kGlobal,
    kStorage,
    kTensor
  };

  /// @param pickle The bytes, which the reader does not copy.
  /// @param function, path For FileError.
  PickleReader(std::string_view pickle, std::string function, std::string path)
      : pickle_(pickle), function_(std::move(function)), path_(std::move(path)) {
    if (pickle.size() > std::numeric_limits<Value>::max())
      fail_here("a pickle below 4 GiB", std::to_string(pickle.size()) + " bytes");
    while (step()) {
    }
  }

  /// The value of the whole pickle.
  Value root() const { return root_; }

  Kind kind(Value value) const { return nodes_[value].kind; }

  /// The number of a kInt, and 0 or 1 for a kBool.
  std::int64_t integer(Value value) const { return nodes_[value].number; }

  /// The text of a kString, and "module.name" of a kGlobal.
  std::string_view text(Value value) const { return pickle_.substr(nodes_[value].begin(), nodes_[value].size()); }

  /// The items of a value:
  /// - kTuple, kList: the elements
  /// - kDict: each key, followed by its value
  /// - kStorage: the elements of the tuple that names it
  /// - kTensor: the arguments of the function that makes it
  std::span<const Value> items(Value value) const {
    const Node& node = nodes_[value];
    if (node.kind == Kind::kList || node.kind == Kind::kDict)
      return node.number == kEmpty ? std::span<const Value>() : std::span<const Value>(growing_[node.begin()]);
    if (node.kind == Kind::kStorage || node.kind == Kind::kTensor) return items(node.begin());
    return std::span(tuples_).subspan(node.begin(), node.size());
  }

  /// "a dict of 3 entries", "the string "…"" and so on, for errors.
  std::string describe(Value value) const {
    const auto count = [](std::size_t n, const char* one, const char* several) {
      return std::to_string(n) + " " + (n == 1 ? one : several);
    };
    switch (kind(value)) {
      case Kind::kNone:
        return "None";
      case Kind::kBool:
        return integer(value) != 0 ? "True" : "False";
      case Kind::kInt:
        return "the int " + std::to_string(integer(value));
      case Kind::kNumber:
        return "a number";
      case Kind::kString:
        return "the string " + detail::quoted(text(value));
      case Kind::kTuple:
        return "a tuple of " + count(items(value).size(), "element", "elements");
      case Kind::kList:
        return "a list of " + count(items(value).size(), "element", "elements");
      case Kind::kDict:
        return "a dict of " + count(items(value).size() / 2, "entry", "entries");
      case Kind::kGlobal:
        return "the name " + detail::quoted(text(value));
      case Kind::kStorage:
        return "a storage";
      default:
        return "a tensor";
    }
  }

 private:
  struct Node {
    Kind kind;
    std::int64_t number = 0;  // an integer, or begin and size in one

    Value begin() const { return static_cast<Value>(number); }
    std::size_t size() const { return static_cast<std::uint64_t>(number) >> 32; }
  };

  static constexpr std::int64_t kEmpty = -1;  // the number of a list or dict without elements

  static std::int64_t packed(std::size_t begin, std::size_t size) {
    return static_cast<std::int64_t>(std::uint64_t{size} << 32 | begin);
  }

  [[noreturn]] void fail_here(const std::string& expected, const std::string& found) const {
    throw FileError(function_, path_,
                    "pickle, byte " + std::to_string(opcode_at_) + ": expected " + expected + ", found " + found);
  }

  // ---- Bytes -------------------------------------------------------------------------------------------------------

  std::string_view take(std::uint64_t size) {
    if (size > pickle_.size() - position_) fail_here("more bytes", "the end of the pickle");
    const std::string_view bytes = pickle_.substr(position_, size);
    position_ += size;
    return bytes;
  }

  std::uint64_t take_number(unsigned width) {
    std::uint64_t value = 0;
    const std::string_view bytes = take(width);
    for (unsigned i = 0; i < width; ++i) value |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << 8 * i;
    return value;
  }

  std::string_view take_line() {
    const std::size_t end = pickle_.find('\n', position_);
    if (end == pickle_.npos) fail_here("the end of a line", "the end of the pickle");
    const std::string_view line = take(end - position_);
    take(1);
    return line;
  }

  // ---- The stack ---------------------------------------------------------------------------------------------------

  void push(Kind kind, std::int64_t number = 0) {
    stack_.push_back(static_cast<Value>(nodes_.size()));
    nodes_.push_back({kind, number});
  }

  void push_text(Kind kind, std::string_view text) {
    push(kind, packed(static_cast<std::size_t>(text.data() - pickle_.data()), text.size()));
  }

  /// Pushes a tuple of the last `count` values.
  void push_tuple(std::size_t count) {
    need(count);
    const std::size_t begin = tuples_.size();
    tuples_.insert(tuples_.end(), stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    push(Kind::kTuple, packed(begin, count));
  }

  /// Checks that there are `count` values after the last mark.
  void need(std::size_t count) const {
    if (stack_.size() - (marks_.empty() ? 0 : marks_.back()) < count)
      fail_here(std::to_string(count) + " values on the stack", "fewer");
  }

  Value top() const {
    need(1);
    return stack_.back();
  }

  Value pop() {
    const Value value = top();
    stack_.pop_back();
    return value;
  }

  Value pop(Kind wanted, const char* expected) {
    const Value value = pop();
    if (kind(value) != wanted) fail_here(expected, describe(value));
    return value;
  }

  /// Takes away the last mark, and returns the number of values after it.
  std::size_t pop_mark() {
    if (marks_.empty()) fail_here("a mark on the stack", "none");
    const std::size_t count = stack_.size() - marks_.back();
    marks_.pop_back();
    return count;
  }

  /// Moves the last `count` values to the list or dict before them.
  void grow(Kind wanted, std::size_t count) {
    need(count + 1);
    const Value container = stack_[stack_.size() - count - 1];
    if (kind(container) != wanted) fail_here(wanted == Kind::kList ? "a list" : "a dict", describe(container));
    if (wanted == Kind::kDict && count % 2 != 0) fail_here("a value for each key", "a key without one");
    if (count == 0) return;
    Node& node = nodes_[container];
    if (node.number == kEmpty) {
      node.number = static_cast<std::int64_t>(growing_.size());
      growing_.emplace_back();
    }
    auto& items = growing_[node.begin()];
    items.insert(items.end(), stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
  }

  void remember(std::uint64_t id) {
    if (id > memo_.size()) fail_here("values remembered in order", "number " + std::to_string(id) + " too early");
    if (id == memo_.size()) memo_.emplace_back();
    memo_[id] = top();
  }

  void recall(std::uint64_t id) {
    if (id >= memo_.size()) fail_here("a remembered value", "number " + std::to_string(id) + ", which is none");
    stack_.push_back(memo_[id]);
  }

  // ---- Opcodes -----------------------------------------------------------------------------------------------------

  /// Executes one opcode. Returns whether others follow.
  bool step() {
    opcode_at_ = position_;
    const auto opcode = static_cast<unsigned char>(take(1)[0]);
    switch (opcode) {
      case 0x80:  // PROTO
        if (const std::uint64_t protocol = take_number(1); protocol > 5)
          fail_here("a pickle protocol of at most 5", std::to_string(protocol));
        return true;
      case 0x95:  // FRAME
        take(8);
        return true;
      case '.':  // STOP
        root_ = pop();
        if (!stack_.empty() || !marks_.empty() || position_ != pickle_.size())
          fail_here("the end of the pickle", "more values");
        return false;

      case 'N':
        push(Kind::kNone);
        return true;
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        push(Kind::kBool, opcode == 0x88);
        return true;
      case 'K':  // BININT1
        push(Kind::kInt, static_cast<std::int64_t>(take_number(1)));
        return true;
      case 'M':  // BININT2
        push(Kind::kInt, static_cast<std::int64_t>(take_number(2)));
        return true;
      case 'J':  // BININT
        push(Kind::kInt, static_cast<std::int32_t>(take_number(4)));
        return true;
      case 0x8a: {  // LONG1
        const auto width = static_cast<unsigned>(take_number(1));
        if (width > 8) {
          take(width);
          push(Kind::kNumber);
        } else {
          const unsigned unused = width == 0 ? 0 : 64 - 8 * width;
          push(Kind::kInt, static_cast<std::int64_t>(take_number(width) << unused) >> unused);
        }
        return true;
      }
      case 'G':  // BINFLOAT
        take(8);
        push(Kind::kNumber);
        return true;
      case 'X':  // BINUNICODE
        push_text(Kind::kString, take(take_number(4)));
        return true;
      case 0x8c:  // SHORT_BINUNICODE
        push_text(Kind::kString, take(take_number(1)));
        return true;

      case '(':  // MARK
        marks_.push_back(static_cast<Value>(stack_.size()));
        return true;
      case 't':
        push_tuple(pop_mark());
        return true;
      case ')':  // EMPTY_TUPLE
        push_tuple(0);
        return true;
      case 0x85:  // TUPLE1
      case 0x86:  // TUPLE2
      case 0x87:  // TUPLE3
        push_tuple(opcode - 0x84u);
        return true;
      case ']':  // EMPTY_LIST
        push(Kind::kList, kEmpty);
        return true;
      case 'a':  // APPEND
        grow(Kind::kList, 1);
        return true;
      case 'e':  // APPENDS
        grow(Kind::kList, pop_mark());
        return true;
      case '}':  // EMPTY_DICT
        push(Kind::kDict, kEmpty);
        return true;
      case 's':  // SETITEM
        grow(Kind::kDict, 2);
        return true;
      case 'u':  // SETITEMS
        grow(Kind::kDict, pop_mark());
        return true;

      case 'q':  // BINPUT
        remember(take_number(1));
        return true;
      case 'r':  // LONG_BINPUT
        remember(take_number(4));
        return true;
      case 0x94:  // MEMOIZE
        remember(memo_.size());
        return true;
      case 'h':  // BINGET
        recall(take_number(1));
        return true;
      case 'j':  // LONG_BINGET
        recall(take_number(4));
        return true;

      case 'c': {  // GLOBAL
        const std::string_view module = take_line(), name = take_line();
        push_global(module, name);
        return true;
      }
      case 0x93: {  // STACK_GLOBAL
        const std::string_view name = text(pop(Kind::kString, "a name")), module = text(pop(Kind::kString, "a module"));
        push_global(module, name);
        return true;
      }
      case 'Q': {  // BINPERSID
        const Value id = pop(Kind::kTuple, "a tuple that names a storage");
        push(Kind::kStorage, id);
        return true;
      }
      case 'R':  // REDUCE
        call();
        return true;
      case 'b': {  // BUILD: the attributes of an OrderedDict, such as _metadata
        pop();
        if (kind(top()) != Kind::kDict) fail_here("attributes of a dict", "those of " + describe(top()));
        return true;
      }
      default:
        fail_here("an opcode that makes dicts, tensors or numbers", "the opcode " + name_of(opcode));
    }
  }

  /// The name that Python's module pickletools gives an opcode, besides those that step() knows.
  static std::string name_of(unsigned char opcode) {
    static constexpr std::pair<unsigned char, const char*> kNames[] = {
        {'0', "POP"},          {'1', "POP_MARK"},       {'2', "DUP"},
        {'B', "BINBYTES"},     {'C', "SHORT_BINBYTES"}, {'F', "FLOAT"},
        {'I', "INT"},          {'L', "LONG"},           {'P', "PERSID"},
        {'S', "STRING"},       {'T', "BINSTRING"},      {'U', "SHORT_BINSTRING"},
        {'V', "UNICODE"},      {'d', "DICT"},           {'g', "GET"},
        {'i', "INST"},         {'l', "LIST"},           {'o', "OBJ"},
        {'p', "PUT"},          {0x81, "NEWOBJ"},        {0x82, "EXT1"},
        {0x83, "EXT2"},        {0x84, "EXT4"},          {0x8b, "LONG4"},
        {0x8d, "BINUNICODE8"}, {0x8e, "BINBYTES8"},     {0x8f, "EMPTY_SET"},
        {0x90, "ADDITEMS"},    {0x91, "FROZENSET"},     {0x92, "NEWOBJ_EX"},
        {0x96, "BYTEARRAY8"},  {0x97, "NEXT_BUFFER"},   {0x98, "READONLY_BUFFER"},
    };
    for (const auto& [known, name] : kNames)
      if (known == opcode) return name;
    return std::to_string(opcode);
  }

  // ---- Functions ---------------------------------------------------------------------------------------------------

  /// Pushes the name of a class or function of Python. Only call() and TorchArchive use it.
  void push_global(std::string_view module, std::string_view name) {
    const bool is_known = (module == "collections" && name == "OrderedDict") ||
                          (module == "torch._utils" && (name == "_rebuild_tensor_v2" || name == "_rebuild_tensor_v3" ||
                                                        name == "_rebuild_parameter")) ||
                          (module == "torch.storage" && name == "UntypedStorage") || module == "torch";
    if (!is_known)
      fail_here("only tensors, numbers, strings, lists, tuples and dicts",
                detail::quoted(std::string(module) + "." + std::string(name)) + ", which attend does not call");
    push_text(Kind::kGlobal, name);
  }

  /// Calls a function of Python: the few that make dicts, tuples and tensors.
  void call() {
    const Value arguments = pop(Kind::kTuple, "a tuple of arguments"), function = pop(Kind::kGlobal, "a function");
    const std::span<const Value> items = this->items(arguments);
    const std::string_view name = text(function);
    if (name == "OrderedDict" && items.empty()) {
      push(Kind::kDict, kEmpty);
    } else if (name == "_rebuild_tensor_v2" || name == "_rebuild_tensor_v3") {
      push(Kind::kTensor, arguments);
    } else if (name == "_rebuild_parameter" && !items.empty() && kind(items[0]) == Kind::kTensor) {
      stack_.push_back(items[0]);
    } else if (name == "Size" && items.size() == 1 && kind(items[0]) == Kind::kTuple) {
      stack_.push_back(items[0]);
    } else {
      fail_here("a call that makes a tensor, a dict or a size", "one of " + detail::quoted(name));
    }
  }

  std::string_view pickle_;
  std::string function_, path_;
  std::size_t position_ = 0, opcode_at_ = 0;
  std::deque<Node> nodes_;
  std::vector<Value> tuples_;               // the elements of all tuples
  std::deque<std::vector<Value>> growing_;  // those of each list and dict that has any
  std::vector<Value> stack_, memo_;
  std::vector<Value> marks_;  // sizes of the stack
  Value root_ = 0;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
