// What a pickle's operations make: values in the arena of a Pickle, and what the known names stand for
// (inside core/io only).
#pragma once
#include <bit>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "core/io/pickle.h"
#include "core/io/pickle_input.h"
#include "core/io/pickle_names.h"

namespace adanat {

// Fails by `in`, so that errors name the byte that was read last. What operations copy is bounded by a
// multiple of the bytes read.
class PickleObjects {
 public:
  using Id = Pickle::Id;
  using Kind = Pickle::Kind;

  // `in` must outlive it.
  PickleObjects(const PickleInput& in, UnknownNames unknown) : in_(in), unknown_(unknown) {}

  size_t count() const { return p_.values_.size(); }
  // The whole, with `root` as its value; nothing may be made after it.
  Pickle finish(Id root);

  Id make(Kind kind, size_t index = 0, uint64_t bits = 0) {
    p_.values_.push_back({kind, static_cast<uint32_t>(index), bits});
    return static_cast<Id>(p_.values_.size() - 1);
  }
  Id make_text(Kind kind, std::string_view text) {
    p_.texts_.push_back(text);
    return make(kind, p_.texts_.size() - 1);
  }
  Id make_sequence(Kind kind, std::vector<Id> items = {}) {
    p_.sequences_.push_back(std::move(items));
    return make(kind, p_.sequences_.size() - 1);
  }
  Id make_int(int64_t value) { return make(Kind::kInt, 0, static_cast<uint64_t>(value)); }
  Kind kind(Id id) const { return p_.kind(id); }
  bool is_opaque(Id id) const { return kind(id) == Kind::kOpaque; }
  const std::vector<Id>& items(Id id) const { return p_.sequences_[p_.values_[id].index]; }
  std::string_view text_value(Id id) const;
  Id long_value(std::span<const std::byte> bytes);
  void append(Id list, std::span<const Id> items);
  void set_items(Id dict, std::span<const Id> items);
  Id global(std::string_view module, std::string_view name);
  // ("storage", type, key, location, count[, view]) of torch's persistent ids.
  Id persistent(Id id);
  // object.__setstate__ or object.__dict__.update.
  void build(Id object, Id state);
  Id new_object(Id type, Id arguments);

 private:
  [[noreturn]] void fail(const std::string& what) const { in_.fail(what); }
  Id make_float(double value) { return make(Kind::kFloat, 0, std::bit_cast<uint64_t>(value)); }
  Id make_named(Kind kind, const std::string& name, uint64_t bits = 0);
  // Bytes that are not in the file as they are. Texts can be shared by many, so the sum is bounded as well.
  std::span<const std::byte> own(std::vector<std::byte> bytes);
  // Counts what operations copy. One on shared objects can copy more than its own bytes: the sum is bounded.
  void grow(size_t items);
  const std::vector<Id>& tuple(Id id) const;
  int64_t size_value(Id id) const;
  Id opaque(const std::string& name) { return make_named(Kind::kOpaque, name); }
  // Another object of the same unknown name, for what would have been made `from`.
  Id opaque_object(Id type, Id from);
  // The list or dict that takes what is put into an unknown object.
  Id items_of(Id object, Kind kind);
  void add_contents(Id object, Id contents);
  // What is not read, as listed and as an error's second half.
  Id not_read(const std::string& name, const std::string& refusal);
  const PickleName* row_of(Id id) const;
  Id make_tensor(uint32_t storage_index, DType dtype, uint64_t offset, std::vector<int64_t> shape,
                 std::vector<int64_t> strides);
  std::vector<int64_t> sizes(Id id) const;
  Id rebuild(const std::vector<Id>& args, size_t least, bool own_dtype);
  std::optional<DType> dtype_value(Id id) const;
  Id numpy_dtype(const std::vector<Id>& args);
  Id numpy_scalar(const std::vector<Id>& args);
  // Fills the value `id` with a numpy array, or makes it opaque where its type is not read.
  void numpy_array(Id id, Id shape_id, Id dtype_id, Id data_id, bool fortran);
  // bytes of Python 3 in protocol 2: _codecs.encode(text, "latin1").
  Id encode(const std::vector<Id>& args);
  // One text of texts and integers.
  Id joined(const std::vector<Id>& parts, char separator);
  Id reduce(Id function, Id arguments);

  const PickleInput& in_;
  UnknownNames unknown_;
  Pickle p_;
  std::map<std::string, size_t> name_index_;
  std::map<std::tuple<std::string, DType, bool, uint64_t, uint64_t, uint64_t>, size_t> storage_index_;
  std::set<Id> namespaces_;
  std::map<Id, Id> unknown_items_;  // of unknown objects: see items_of
  uint64_t owned_size_ = 0, grown_ = 0;
};

}  // namespace adanat
