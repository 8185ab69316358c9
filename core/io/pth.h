// PyTorch's .pth / .pt / .ckpt / .bin files, read without executing anything. Free of torch: a tensor here is
// a name, a type, a shape, strides and a range of bytes.
//
// Two containers: a zip archive (NAME/data.pkl, NAME/data/<key>, NAME/byteorder; torch >= 1.6), and the
// legacy stream of pickles (magic number, protocol 1001, system info, object, storage keys) with the storages
// behind it. The tar files of torch before 0.1.10 and TorchScript archives are refused with a word that says
// so; so are big-endian files. Source: torch/serialization.py (_save, _legacy_save, _load, _legacy_load).
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/dtype.h"
#include "core/io/pickle.h"

namespace adanat {

// Where a tensor stands in the file: the dotted path of keys and list indices that leads to it
// ("optimizer.state.0.step"). Where two paths read alike ({"a.b": x, "a": {"b": y}}), "#2" is added to the
// second.
struct PthTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape, strides;  // strides in elements; 0 where one element stands for many
  uint32_t storage;                     // tensors with the same number share memory
  uint64_t offset;                      // of the first element in its storage, in elements
  uint64_t count() const;               // number of elements
  bool contiguous() const;              // row-major without gaps
};

// A number, a truth value or a text under its dotted path; a long list of such values is one, too.
struct PthScalar {
  enum class Kind { kNone, kBool, kInt, kFloat, kText, kOther, kList } kind;
  int64_t integer = 0;  // kBool, kInt; kList: how many values it has
  double real = 0;      // kFloat
  // kText; for an integer of more than 64 bits its hex digits ("0x..."); kOther: what it is.
  std::string text{};
  std::vector<PthScalar> first{};  // kList: the first few
};

// True if the bytes start like one of the two containers (any zip archive counts). Reads a few dozen bytes.
bool is_pth(std::span<const std::byte> bytes);

// An open file. Cheap to copy (shared state); const methods are safe from several threads.
class PthFile {
 public:
  // Checks every size against the file before anything of that size is allocated. InputError naming the file:
  // damaged, cut short, or (UnknownNames::kRefuse) a pickle that uses a name which tensors do not need: it is
  // named, and nothing of it is executed in either case.
  static PthFile open(const std::filesystem::path& path, UnknownNames unknown = UnknownNames::kRefuse);

  // "zip" or "legacy".
  const std::string& container() const;
  // Every tensor that can be reached from the root, in the order of the file. numpy arrays count as tensors.
  const std::vector<PthTensor>& tensors() const;
  const PthTensor* find(std::string_view name) const;  // null if there is no such tensor
  // Everything that is no tensor: counters, texts, settings (argparse.Namespace is a plain map). The root's
  // own path is "". At most as many as take a small multiple of the pickle's memory; left_out() says how many
  // more there are.
  const std::map<std::string, PthScalar>& scalars() const;
  uint64_t left_out() const;
  // Names outside the table of core/io/pickle.h; see UnknownNames.
  const std::vector<std::string>& refused() const;

  // The bytes of a tensor's storage, counted from its element 0. The first call for a storage checks its CRC
  // (zip) and inflates it if it is compressed. InputError: damaged. The span lives as long as any copy of
  // this object.
  std::span<const std::byte> storage(const PthTensor& tensor) const;
  // Copies the elements in row-major order to `out`, which has room for count() of them.
  void copy(const PthTensor& tensor, void* out) const;
  // Bytes that copying every tensor which is not contiguous would take. A hostile file can make a small
  // storage stand for terabytes (strides of 0): look before you allocate.
  uint64_t copied_bytes() const;
  const std::filesystem::path& path() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace adanat
