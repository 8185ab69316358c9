// Python pickles read as plain data: an interpreter that can build lists, dicts, numbers, texts and
// descriptions of tensors, and nothing else. No name in a pickle is ever imported or called; the few that
// tensors need are a fixed table, and what they stand for is done here.
//
// Read: protocols 2 to 5. Names: those of torch's tensors, storages, parameters and dtypes, OrderedDict and
// the built-in containers, argparse.Namespace (a plain map), numpy scalars and arrays, paths (plain text).
// Not read: everything else, the text opcodes of protocols 0 and 1, extension registries, out-of-band
// buffers. Source: Python's pickletools.py (the opcodes), torch/_utils.py and torch/serialization.py (what
// torch puts in).
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/dtype.h"

namespace adanat {

// What to do with names outside the table.
enum class UnknownNames {
  kRefuse,  // an error that names the first of them
  kList,    // read on, with an opaque value in their place, and list them: for showing what a file holds
};

// A pickle's values, in one arena: values are numbers into it, so shared and cyclic structures cost nothing
// extra.
class Pickle {
 public:
  using Id = uint32_t;
  enum class Kind : uint8_t {
    kNone,
    kBool,
    kInt,
    kFloat,
    kText,
    kBytes,
    kBigInt,  // an integer of more than 64 bits: its little-endian two's complement bytes
    kList,    // also sets
    kTuple,
    kDict,     // also OrderedDict, defaultdict, Namespace
    kName,     // a name of the table, not called
    kDtype,    // a numpy or torch dtype
    kStorage,  // a torch storage
    kTensor,   // a torch tensor or parameter, or a numpy array
    kOpaque,   // what a name outside the table stands for, or would have made
  };
  // One block of elements. For a numpy array, and for a torch storage once the container has found it, its
  // bytes are known.
  struct Storage {
    std::string key;     // torch: the container's name for it; numpy arrays: empty
    DType dtype;         // type that its size is counted in
    uint64_t count = 0;  // elements
    uint64_t begin = 0,
             total = 0;    // legacy views are the elements [begin, begin + count) of `total`; else 0, count
    bool untyped = false;  // counted in bytes; every tensor on it brings its own type
    std::span<const std::byte> content{};  // numpy arrays
  };
  struct Tensor {
    uint32_t storage = 0;  // index into storages()
    DType dtype = DType::kF32;
    uint64_t offset = 0;                  // of the first element, in elements of dtype
    std::vector<int64_t> shape, strides;  // in elements; both >= 0. The last element lies inside the storage.
  };

  // Reads one pickle from the start of `bytes`, which must outlive the result; it may end before they do: see
  // size(). Memory: a small multiple of the pickle's own size, at most kMaxValues values. InputError naming
  // `where` and the byte.
  static constexpr size_t kMaxValues = 4'000'000;
  static Pickle parse(std::span<const std::byte> bytes, const std::string& where,
                      UnknownNames unknown = UnknownNames::kRefuse);

  size_t size() const { return size_; }  // bytes of the pickle, its STOP included
  Id root() const { return root_; }
  Kind kind(Id id) const { return values_[id].kind; }
  // Each for its kind only, else RunError.
  bool as_bool(Id id) const;
  int64_t as_int(Id id) const;
  double as_float(Id id) const;
  std::string_view as_text(Id id) const;      // kText, kBytes, kBigInt
  std::string name(Id id) const;              // kName, kDtype, kOpaque: "torch.FloatStorage"
  const std::vector<Id>& items(Id id) const;  // kList, kTuple: the items; kDict: key, value, key, value
  const Tensor& tensor(Id id) const;
  // kOpaque: what the object was to be made from (its items and state, else its arguments); null where there
  // is nothing.
  const Id* contents(Id id) const;
  // The value under a text key of a dict (the last one where it is there twice); null for other kinds and
  // unknown keys.
  const Id* find(Id dict, std::string_view key) const;

  const std::vector<Storage>& storages() const { return storages_; }
  // Names outside the table that the pickle uses, each once ("posix.system"). Empty unless
  // UnknownNames::kList.
  const std::vector<std::string>& refused() const { return refused_; }

 private:
  friend class PickleObjects;
  struct Value {
    Kind kind;
    uint32_t index;  // into sequences_, tensors_, storages_, names_ or texts_
    uint64_t bits;   // a number
  };
  Pickle() = default;
  void check(Id id, Kind kind, Kind other) const;

  size_t size_ = 0;
  Id root_ = 0;
  std::vector<Value> values_;
  std::vector<std::string_view> texts_;
  std::vector<std::string> names_;
  std::vector<std::vector<Id>> sequences_;
  std::vector<Tensor> tensors_;
  std::vector<Storage> storages_;
  std::vector<std::vector<std::byte>> owned_;  // bytes decoded from texts
  std::vector<std::string> refused_;
  std::map<Id, Id> contents_, arguments_;
};

}  // namespace adanat
