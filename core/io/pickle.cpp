#include "core/io/pickle.h"

#include <bit>

#include "core/base/error.h"
#include "core/io/pickle_objects.h"

namespace adanat {
namespace {

// One run of the interpreter. Every operation takes at least one byte of the pickle and adds at most a few
// values, one stack entry and one memo entry, which bounds the memory.
class PickleMachine {
 public:
  PickleMachine(std::span<const std::byte> bytes, const std::string& where, UnknownNames unknown)
      : in_(bytes, where), objects_(in_, unknown) {}

  Pickle run() {
    while (!step()) {
      if (objects_.count() > Pickle::kMaxValues) in_.fail(cat("more than ", Pickle::kMaxValues, " values"));
    }
    if (stack_.size() != 1 || !marks_.empty()) in_.fail("it does not end with one value");
    return objects_.finish(stack_[0]);
  }

 private:
  using Id = Pickle::Id;
  using Kind = Pickle::Kind;
  static constexpr Id kNothing = UINT32_MAX;

  // The stack. Nothing below the last mark may be taken.
  void push(Id id) { stack_.push_back(id); }
  Id pop() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) in_.fail("a value is missing");
    const Id id = stack_.back();
    stack_.pop_back();
    return id;
  }
  Id top() const {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) in_.fail("a value is missing");
    return stack_.back();
  }
  std::vector<Id> pop_to_mark() {
    if (marks_.empty()) in_.fail("a mark is missing");
    const auto begin = stack_.begin() + marks_.back();
    std::vector<Id> out(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return out;
  }

  void memo_put(size_t index) {
    // Picklers count from 0; an index beyond the bytes read so far cannot have been counted.
    if (index > in_.at()) in_.fail("a memo index is out of range");
    if (index >= memo_.size()) memo_.resize(index + 1, kNothing);
    memo_[index] = top();
  }
  void memo_get(size_t index) {
    if (index >= memo_.size() || memo_[index] == kNothing) in_.fail("a memo index is out of range");
    push(memo_[index]);
  }

  // One operation; true at STOP.
  bool step() {
    const auto op = std::to_integer<uint8_t>(in_.take(1)[0]);
    switch (op) {
      case 0x80: {  // PROTO
        const uint8_t protocol = in_.number<uint8_t>();
        if (protocol < 2 || protocol > 5) in_.fail(cat("protocol ", int{protocol}, "; 2 to 5 are read"));
        return false;
      }
      case '.':
        return true;
      case 0x95:
        in_.number<uint64_t>();
        return false;  // FRAME: only a hint for reading ahead
      case '(':
        marks_.push_back(static_cast<uint32_t>(stack_.size()));
        return false;
      case '0':  // POP also takes a mark that is on top
        if (!marks_.empty() && marks_.back() == stack_.size())
          marks_.pop_back();
        else
          pop();
        return false;
      case '1':
        pop_to_mark();
        return false;
      case '2':
        push(top());
        return false;

      case 'N':
        push(objects_.make(Kind::kNone));
        return false;
      case 0x88:
        push(objects_.make(Kind::kBool, 0, 1));
        return false;
      case 0x89:
        push(objects_.make(Kind::kBool, 0, 0));
        return false;
      case 'J':
        push(objects_.make_int(static_cast<int32_t>(in_.number<uint32_t>())));
        return false;
      case 'K':
        push(objects_.make_int(in_.number<uint8_t>()));
        return false;
      case 'M':
        push(objects_.make_int(in_.number<uint16_t>()));
        return false;
      case 0x8a:
        push(objects_.long_value(in_.take(in_.number<uint8_t>())));
        return false;
      case 0x8b:
        push(objects_.long_value(in_.take(in_.number<uint32_t>())));
        return false;
      case 'G': {  // the one big-endian number
        uint64_t bits = 0;
        for (const std::byte byte : in_.take(8)) bits = bits << 8 | std::to_integer<uint64_t>(byte);
        push(objects_.make(Kind::kFloat, 0, bits));
        return false;
      }

      case 0x8c:
        push(objects_.make_text(Kind::kText, in_.text(in_.number<uint8_t>())));
        return false;
      case 'X':
        push(objects_.make_text(Kind::kText, in_.text(in_.number<uint32_t>())));
        return false;
      case 0x8d:
        push(objects_.make_text(Kind::kText, in_.text(in_.number<uint64_t>())));
        return false;
      case 'U':
        push(objects_.make_text(Kind::kText, in_.text(in_.number<uint8_t>())));
        return false;  // str of Python 2
      case 'T':
        push(objects_.make_text(Kind::kText, in_.text(in_.number<uint32_t>())));
        return false;
      case 'C':
        push(objects_.make_text(Kind::kBytes, in_.text(in_.number<uint8_t>())));
        return false;
      case 'B':
        push(objects_.make_text(Kind::kBytes, in_.text(in_.number<uint32_t>())));
        return false;
      case 0x8e:
        push(objects_.make_text(Kind::kBytes, in_.text(in_.number<uint64_t>())));
        return false;
      case 0x96:
        push(objects_.make_text(Kind::kBytes, in_.text(in_.number<uint64_t>())));
        return false;  // BYTEARRAY8

      case ']':
        push(objects_.make_sequence(Kind::kList));
        return false;
      case 0x8f:
        push(objects_.make_sequence(Kind::kList));
        return false;  // EMPTY_SET
      case ')':
        push(objects_.make_sequence(Kind::kTuple));
        return false;
      case '}':
        push(objects_.make_sequence(Kind::kDict));
        return false;
      case 'l':
        push(objects_.make_sequence(Kind::kList, pop_to_mark()));
        return false;
      case 0x91:
        push(objects_.make_sequence(Kind::kList, pop_to_mark()));
        return false;  // FROZENSET
      case 't':
        push(objects_.make_sequence(Kind::kTuple, pop_to_mark()));
        return false;
      case 'd': {
        const std::vector<Id> pairs = pop_to_mark();
        const Id dict = objects_.make_sequence(Kind::kDict);
        objects_.set_items(dict, pairs);
        push(dict);
        return false;
      }
      case 0x85:
      case 0x86:
      case 0x87: {  // TUPLE1..3
        std::vector<Id> items(op - 0x84);
        for (size_t i = items.size(); i-- > 0;) items[i] = pop();
        push(objects_.make_sequence(Kind::kTuple, std::move(items)));
        return false;
      }
      case 'a': {
        const Id item = pop();
        objects_.append(top(), {&item, 1});
        return false;
      }
      case 'e':
      case 0x90: {  // APPENDS, ADDITEMS
        const std::vector<Id> items = pop_to_mark();
        objects_.append(top(), items);
        return false;
      }
      case 's': {
        const Id value = pop(), key = pop(), pair[] = {key, value};
        objects_.set_items(top(), pair);
        return false;
      }
      case 'u': {
        const std::vector<Id> pairs = pop_to_mark();
        objects_.set_items(top(), pairs);
        return false;
      }

      case 'q':
        memo_put(in_.number<uint8_t>());
        return false;
      case 'r':
        memo_put(in_.number<uint32_t>());
        return false;
      case 0x94:
        memo_put(memo_.size());
        return false;
      case 'h':
        memo_get(in_.number<uint8_t>());
        return false;
      case 'j':
        memo_get(in_.number<uint32_t>());
        return false;

      case 'c': {
        const std::string_view module = in_.line();
        push(objects_.global(module, in_.line()));
        return false;
      }
      case 0x93: {  // STACK_GLOBAL
        const Id name = pop(), module = pop();
        push(objects_.global(objects_.text_value(module).substr(0, PickleInput::kMaxName),
                             objects_.text_value(name).substr(0, PickleInput::kMaxName)));
        return false;
      }
      case 'R': {
        const Id arguments = pop(), function = pop();
        push(objects_.new_object(function, arguments));
        return false;
      }
      case 0x81: {  // NEWOBJ
        const Id arguments = pop(), type = pop();
        push(objects_.new_object(type, arguments));
        return false;
      }
      case 0x92: {  // NEWOBJ_EX
        const Id keywords = pop(), arguments = pop(), type = pop();
        if (!objects_.is_opaque(type) &&
            (objects_.kind(keywords) != Kind::kDict || !objects_.items(keywords).empty()))
          in_.fail("an object with keyword arguments");
        push(objects_.new_object(type, arguments));
        return false;
      }
      case 'b': {
        const Id state = pop();
        objects_.build(top(), state);
        return false;
      }
      case 'Q':
        push(objects_.persistent(pop()));
        return false;
      default:
        break;
    }
    in_.step_back();
    constexpr char kHex[] = "0123456789abcdef";
    in_.fail(cat("the operation 0x", kHex[op >> 4], kHex[op & 15], ", which is not read"));
  }

  PickleInput in_;
  PickleObjects objects_;
  std::vector<Id> stack_, memo_;
  std::vector<uint32_t> marks_;
};

}  // namespace

Pickle Pickle::parse(std::span<const std::byte> bytes, const std::string& where, UnknownNames unknown) {
  return PickleMachine(bytes, where, unknown).run();
}

void Pickle::check(Id id, Kind kind, Kind other) const {
  if (id >= values_.size() || (values_[id].kind != kind && values_[id].kind != other))
    throw RunError("a value of a pickle is used as another kind than it is");
}
bool Pickle::as_bool(Id id) const {
  check(id, Kind::kBool, Kind::kBool);
  return values_[id].bits != 0;
}
int64_t Pickle::as_int(Id id) const {
  check(id, Kind::kInt, Kind::kInt);
  return static_cast<int64_t>(values_[id].bits);
}
double Pickle::as_float(Id id) const {
  check(id, Kind::kFloat, Kind::kFloat);
  return std::bit_cast<double>(values_[id].bits);
}
std::string_view Pickle::as_text(Id id) const {
  if (id < values_.size() && values_[id].kind == Kind::kBigInt) return texts_[values_[id].index];
  check(id, Kind::kText, Kind::kBytes);
  return texts_[values_[id].index];
}
std::string Pickle::name(Id id) const {
  if (id < values_.size() && values_[id].kind == Kind::kDtype) return names_[values_[id].index];
  check(id, Kind::kName, Kind::kOpaque);
  return names_[values_[id].index];
}
const std::vector<Pickle::Id>& Pickle::items(Id id) const {
  if (id < values_.size() && values_[id].kind == Kind::kDict) return sequences_[values_[id].index];
  check(id, Kind::kList, Kind::kTuple);
  return sequences_[values_[id].index];
}
const Pickle::Tensor& Pickle::tensor(Id id) const {
  check(id, Kind::kTensor, Kind::kTensor);
  return tensors_[values_[id].index];
}
const Pickle::Id* Pickle::contents(Id id) const {
  for (const auto* known : {&contents_, &arguments_})
    if (const auto found = known->find(id); found != known->end()) return &found->second;
  return nullptr;
}
const Pickle::Id* Pickle::find(Id dict, std::string_view key) const {
  if (dict >= values_.size() || values_[dict].kind != Kind::kDict) return nullptr;
  const auto& pairs = sequences_[values_[dict].index];
  for (size_t i = pairs.size(); i > 0; i -= 2)
    if (values_[pairs[i - 2]].kind == Kind::kText && texts_[values_[pairs[i - 2]].index] == key)
      return &pairs[i - 1];
  return nullptr;
}

}  // namespace adanat