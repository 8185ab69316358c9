#include "core/io/pth_tree.h"

#include <algorithm>
#include <set>
#include <string_view>

#include "core/base/error.h"

namespace adanat {
namespace {

using Kind = Pickle::Kind;
using Id = Pickle::Id;

constexpr size_t kMaxDepth = 512;
// Longer lists of plain values are one value, of which the first few are kept.
constexpr size_t kLongList = 64, kFirst = 8;
// What an entry takes beside its texts: itself, its node in a map, and as much again for those who print it.
constexpr uint64_t kTensorCost = 512, kScalarCost = 256;

std::string hex(std::string_view bytes) {
  std::string text = "0x";
  for (size_t i = bytes.size(); i-- > 0;)
    for (const int shift : {4, 0}) text += "0123456789abcdef"[static_cast<uint8_t>(bytes[i]) >> shift & 15];
  return text;
}

class Walk {
 public:
  Walk(const Pickle& pickle, const std::string& where) : p_(pickle), where_(where) {}

  PthTree run() {
    visit(p_.root());
    while (!stack_.empty()) {
      Frame& frame = stack_.back();
      path_.resize(frame.path_size);
      const auto& items = p_.items(frame.id);
      if (frame.next >= items.size()) {
        active_.erase(frame.id);
        stack_.pop_back();
        continue;
      }
      const size_t at = frame.next;
      const bool is_dict = p_.kind(frame.id) == Kind::kDict;
      frame.next += is_dict ? 2 : 1;
      if (!path_.empty()) path_ += '.';
      path_ += is_dict ? key_text(items[at], at / 2) : std::to_string(at);
      visit(items[is_dict ? at + 1 : at]);
    }
    return std::move(out_);
  }

 private:
  struct Frame {
    Id id;
    size_t next;       // item to visit
    size_t path_size;  // of the path of this container
  };

  std::string key_text(Id key, size_t number) const {
    if (p_.kind(key) == Kind::kText) return std::string(p_.as_text(key));
    if (p_.kind(key) == Kind::kInt) return std::to_string(p_.as_int(key));
    return cat("#", number);  // a tuple, say: some text that is its own
  }

  // Counts the work: every value of a pickle takes a byte of it, so only shared objects come to more.
  void work(uint64_t steps) {
    steps_ += steps;
    if (steps_ > 16 * uint64_t{p_.size()} + 65536)
      throw InputError(cat(where_, ": the same objects are in it again and again; refused"));
  }
  // Counts the memory; false where it would be too much.
  bool take(uint64_t bytes) {
    if (bytes > 16 * uint64_t{p_.size()} + (uint64_t{1} << 20) - taken_) return false;
    taken_ += bytes;
    return true;
  }

  static bool is_plain(Kind kind) {
    switch (kind) {
      case Kind::kNone:
      case Kind::kBool:
      case Kind::kInt:
      case Kind::kFloat:
      case Kind::kText:
      case Kind::kBigInt:
      case Kind::kBytes:
      case Kind::kName:
      case Kind::kDtype:
        return true;
      default:
        return false;
    }
  }

  PthScalar plain(Id id) const {
    switch (p_.kind(id)) {
      case Kind::kBool:
        return {PthScalar::Kind::kBool, p_.as_bool(id)};
      case Kind::kInt:
        return {PthScalar::Kind::kInt, p_.as_int(id)};
      case Kind::kFloat:
        return {PthScalar::Kind::kFloat, 0, p_.as_float(id)};
      case Kind::kText:
        return {PthScalar::Kind::kText, 0, 0, std::string(p_.as_text(id))};
      case Kind::kBigInt:
        return {PthScalar::Kind::kText, 0, 0, hex(p_.as_text(id).substr(0, 64))};
      case Kind::kBytes:
        return {PthScalar::Kind::kOther, 0, 0, cat(p_.as_text(id).size(), " bytes")};
      case Kind::kName:
      case Kind::kDtype:
        return {PthScalar::Kind::kOther, 0, 0, p_.name(id)};
      default:
        return {PthScalar::Kind::kNone};
    }
  }
  uint64_t cost(Id id) const {
    return kScalarCost + (p_.kind(id) == Kind::kText ? p_.as_text(id).size() : 0);
  }

  // The path, or what tells it from one that reads alike.
  template <class Map>
  std::string own_name(const Map& taken) {
    if (!taken.contains(path_)) return path_;
    std::string name;
    for (int& again = repeats_[path_]; name.empty() || taken.contains(name); ++again)
      name = cat(path_, "#", again + 2);
    return name;
  }

  void add_scalar(Id id) {
    if (!take(cost(id) + 2 * path_.size()))
      ++out_.left_out;
    else
      out_.scalars.emplace(own_name(out_.scalars), plain(id));
  }

  void add_tensor(const Pickle::Tensor& t) {
    if (!take(kTensorCost + 3 * path_.size() + 16 * t.shape.size()))
      throw InputError(cat(where_, ": the same tensors are in it again and again; refused"));
    std::string name = own_name(out_.index);
    out_.index.emplace(name, out_.tensors.size());
    out_.tensors.push_back({std::move(name), t.dtype, t.shape, t.strides, t.storage, t.offset});
  }

  // Whether `id` is a long list of plain values, which is then one of them.
  bool add_long_list(Id id) {
    if (p_.kind(id) == Kind::kDict) return false;
    const auto& items = p_.items(id);
    if (items.size() <= kLongList) return false;
    const auto [known, is_new] = plain_lists_.try_emplace(id, false);
    if (is_new)
      known->second = std::all_of(items.begin(), items.end(), [&](Id i) { return is_plain(p_.kind(i)); });
    if (!known->second) return false;
    uint64_t bytes = kScalarCost + 2 * path_.size();
    for (size_t i = 0; i < kFirst; ++i) bytes += cost(items[i]);
    if (!take(bytes)) {
      out_.left_out += items.size();
      return true;
    }
    PthScalar list{PthScalar::Kind::kList, static_cast<int64_t>(items.size())};
    for (size_t i = 0; i < kFirst; ++i) list.first.push_back(plain(items[i]));
    out_.scalars.emplace(own_name(out_.scalars), std::move(list));
    return true;
  }

  void visit(Id id) {
    work(1 + path_.size() / 16);
    // An unknown object's contents may be such an object again.
    for (size_t hops = 0; p_.kind(id) == Kind::kOpaque; ++hops) {
      const Id* contents = p_.contents(id);
      if (contents == nullptr || hops == kMaxDepth) return;
      work(8);
      id = *contents;
    }
    if (is_plain(p_.kind(id))) return add_scalar(id);
    if (p_.kind(id) == Kind::kTensor) return add_tensor(p_.tensor(id));
    if (p_.kind(id) == Kind::kStorage || active_.contains(id) || add_long_list(id)) return;
    if (stack_.size() == kMaxDepth)
      throw InputError(cat(where_, ": is nested deeper than ", kMaxDepth, "; refused"));
    active_.insert(id);
    stack_.push_back({id, 0, path_.size()});
  }

  const Pickle& p_;
  const std::string& where_;
  PthTree out_;
  std::vector<Frame> stack_;
  std::set<Id> active_;  // the containers on the stack
  std::string path_;
  std::map<Id, bool> plain_lists_;      // whether a long list is all plain values
  std::map<std::string, int> repeats_;  // of paths that read alike: how many so far
  uint64_t steps_ = 0, taken_ = 0;
};

}  // namespace

PthTree pth_tree(const Pickle& pickle, const std::string& where) {
  return Walk(pickle, where).run();
}

}  // namespace adanat
