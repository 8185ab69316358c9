#include "core/io/pickle.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <tuple>

#include "core/base/error.h"
#include "core/base/text.h"
#include "core/io/float16.h"

namespace adanat {
namespace {

// What a name of the table stands for.
enum class Call : uint8_t {
  kRebuildTensor,
  kRebuildTensorV2,
  kRebuildTensorV3,
  kRebuildParameter,
  kRebuildFromType,
  kTensorType,
  kStorageType,
  kUntypedStorage,
  kTorchDtype,
  kTorchSize,
  kTorchDevice,
  kDict,
  kOrderedDict,
  kDefaultDict,
  kNamespace,
  kList,
  kTuple,
  kSet,
  kBytes,
  kType,
  kEncode,
  kPath,
  kNumpyDtype,
  kNumpyScalar,
  kNumpyArrayType,
  kNumpyReconstruct,
  kNumpyFromBuffer,
};

struct NameRow {
  std::string_view module, name;
  Call call;
  DType dtype = DType::kU8;
};

constexpr auto kNames = std::to_array<NameRow>({
    {"torch._utils", "_rebuild_tensor", Call::kRebuildTensor},
    {"torch._utils", "_rebuild_tensor_v2", Call::kRebuildTensorV2},
    {"torch._utils", "_rebuild_tensor_v3", Call::kRebuildTensorV3},
    {"torch._utils", "_rebuild_parameter", Call::kRebuildParameter},
    {"torch._utils", "_rebuild_parameter_with_state", Call::kRebuildParameter},
    {"torch._tensor", "_rebuild_from_type_v2", Call::kRebuildFromType},
    {"torch", "Tensor", Call::kTensorType},
    {"torch._tensor", "Tensor", Call::kTensorType},
    {"torch.nn.parameter", "Parameter", Call::kTensorType},
    {"torch.nn.parameter", "Buffer", Call::kTensorType},
    {"torch", "BoolStorage", Call::kStorageType, DType::kBool},
    {"torch", "ByteStorage", Call::kStorageType, DType::kU8},
    {"torch", "CharStorage", Call::kStorageType, DType::kI8},
    {"torch", "ShortStorage", Call::kStorageType, DType::kI16},
    {"torch", "IntStorage", Call::kStorageType, DType::kI32},
    {"torch", "LongStorage", Call::kStorageType, DType::kI64},
    {"torch", "HalfStorage", Call::kStorageType, DType::kF16},
    {"torch", "BFloat16Storage", Call::kStorageType, DType::kBF16},
    {"torch", "FloatStorage", Call::kStorageType, DType::kF32},
    {"torch", "DoubleStorage", Call::kStorageType, DType::kF64},
    {"torch.cuda", "BoolStorage", Call::kStorageType, DType::kBool},
    {"torch.cuda", "ByteStorage", Call::kStorageType, DType::kU8},
    {"torch.cuda", "CharStorage", Call::kStorageType, DType::kI8},
    {"torch.cuda", "ShortStorage", Call::kStorageType, DType::kI16},
    {"torch.cuda", "IntStorage", Call::kStorageType, DType::kI32},
    {"torch.cuda", "LongStorage", Call::kStorageType, DType::kI64},
    {"torch.cuda", "HalfStorage", Call::kStorageType, DType::kF16},
    {"torch.cuda", "BFloat16Storage", Call::kStorageType, DType::kBF16},
    {"torch.cuda", "FloatStorage", Call::kStorageType, DType::kF32},
    {"torch.cuda", "DoubleStorage", Call::kStorageType, DType::kF64},
    {"torch", "UntypedStorage", Call::kUntypedStorage},
    {"torch.storage", "UntypedStorage", Call::kUntypedStorage},
    {"torch", "bool", Call::kTorchDtype, DType::kBool},
    {"torch", "uint8", Call::kTorchDtype, DType::kU8},
    {"torch", "int8", Call::kTorchDtype, DType::kI8},
    {"torch", "int16", Call::kTorchDtype, DType::kI16},
    {"torch", "uint16", Call::kTorchDtype, DType::kU16},
    {"torch", "int32", Call::kTorchDtype, DType::kI32},
    {"torch", "uint32", Call::kTorchDtype, DType::kU32},
    {"torch", "int64", Call::kTorchDtype, DType::kI64},
    {"torch", "uint64", Call::kTorchDtype, DType::kU64},
    {"torch", "float16", Call::kTorchDtype, DType::kF16},
    {"torch", "bfloat16", Call::kTorchDtype, DType::kBF16},
    {"torch", "float32", Call::kTorchDtype, DType::kF32},
    {"torch", "float64", Call::kTorchDtype, DType::kF64},
    {"torch", "Size", Call::kTorchSize},
    {"torch", "device", Call::kTorchDevice},
    {"collections", "OrderedDict", Call::kOrderedDict},
    {"collections", "defaultdict", Call::kDefaultDict},
    {"argparse", "Namespace", Call::kNamespace},
    {"_codecs", "encode", Call::kEncode},
    {"pathlib", "Path", Call::kPath},
    {"pathlib", "PosixPath", Call::kPath},
    {"pathlib", "WindowsPath", Call::kPath},
    {"pathlib", "PurePosixPath", Call::kPath},
    {"pathlib._local", "PosixPath", Call::kPath},
    {"pathlib._local", "WindowsPath", Call::kPath},
    {"numpy", "dtype", Call::kNumpyDtype},
    {"numpy", "ndarray", Call::kNumpyArrayType},
    {"numpy.core.multiarray", "scalar", Call::kNumpyScalar},
    {"numpy._core.multiarray", "scalar", Call::kNumpyScalar},
    {"numpy.core.multiarray", "_reconstruct", Call::kNumpyReconstruct},
    {"numpy._core.multiarray", "_reconstruct", Call::kNumpyReconstruct},
    {"numpy.core.numeric", "_frombuffer", Call::kNumpyFromBuffer},
    {"numpy._core.numeric", "_frombuffer", Call::kNumpyFromBuffer},
    // The built-in types, under the module name of Python 2 (which protocol 2 writes) and of Python 3
    // (builtin_row below).
    {"builtins", "dict", Call::kDict},
    {"builtins", "list", Call::kList},
    {"builtins", "tuple", Call::kTuple},
    {"builtins", "set", Call::kSet},
    {"builtins", "frozenset", Call::kSet},
    {"builtins", "bytes", Call::kBytes},
    {"builtins", "bytearray", Call::kBytes},
    // Only as the factory of a defaultdict.
    {"builtins", "int", Call::kType},
    {"builtins", "float", Call::kType},
    {"builtins", "bool", Call::kType},
    {"builtins", "str", Call::kType},
});

std::optional<size_t> find_name(std::string_view module, std::string_view name) {
  if (module == "__builtin__") module = "builtins";
  for (size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i].module == module && kNames[i].name == name) return i;
  return std::nullopt;
}

struct NumpyRow {
  std::string_view text;
  DType dtype;
};
constexpr auto kNumpyDtypes = std::to_array<NumpyRow>({{"b1", DType::kBool},
                                                       {"u1", DType::kU8},
                                                       {"i1", DType::kI8},
                                                       {"i2", DType::kI16},
                                                       {"u2", DType::kU16},
                                                       {"f2", DType::kF16},
                                                       {"i4", DType::kI32},
                                                       {"u4", DType::kU32},
                                                       {"f4", DType::kF32},
                                                       {"f8", DType::kF64},
                                                       {"i8", DType::kI64},
                                                       {"u8", DType::kU64}});

constexpr size_t kMaxRank = 16;  // of tensors; eight is the most that anybody uses
constexpr size_t kMaxName = 256;

template <class T>
T load_le(const std::byte* bytes) {
  T value = 0;
  for (size_t i = sizeof(T); i > 0; --i)
    value = static_cast<T>(value << 8 | std::to_integer<T>(bytes[i - 1]));
  return value;
}

}  // namespace

// One run of the interpreter. Every operation takes at least one byte of the pickle and adds at most one
// value, one stack entry and one memo entry, which bounds the memory.
class PickleReader {
 public:
  PickleReader(std::span<const std::byte> bytes, const std::string& where, UnknownNames unknown)
      : bytes_(bytes), where_(where), unknown_(unknown) {}

  Pickle run() {
    while (!step()) {
      if (p_.values_.size() > Pickle::kMaxValues) fail(cat("more than ", Pickle::kMaxValues, " values"));
    }
    if (stack_.size() != 1 || !marks_.empty()) fail("it does not end with one value");
    p_.root_ = stack_[0];
    p_.size_ = at_;
    for (const Pickle::Storage& storage : p_.storages_)
      if (storage.begin > storage.total || storage.count > storage.total - storage.begin)
        fail(cat("the view of storage ", printable(storage.key), " lies outside of it"));
    return std::move(p_);
  }

 private:
  using Id = Pickle::Id;
  using Kind = Pickle::Kind;
  static constexpr Id kNothing = UINT32_MAX;

  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(
        cat(where_, ": the pickle is damaged or no data of tensors, near its byte ", at_, ": ", what));
  }

  // Reading.
  std::span<const std::byte> take(uint64_t size) {
    if (size > bytes_.size() - at_) fail("it is cut short");
    const auto out = bytes_.subspan(at_, static_cast<size_t>(size));
    at_ += static_cast<size_t>(size);
    return out;
  }
  template <class T>
  T number() {
    return load_le<T>(take(sizeof(T)).data());
  }
  std::string_view text(uint64_t size) {
    const auto out = take(size);
    return {reinterpret_cast<const char*>(out.data()), out.size()};
  }
  std::string_view line() {
    const auto rest = bytes_.subspan(at_, std::min(bytes_.size() - at_, kMaxName));
    const auto end = std::find(rest.begin(), rest.end(), std::byte{'\n'});
    if (end == rest.end()) fail("a name without end");
    const std::string_view out = text(static_cast<uint64_t>(end - rest.begin()));
    ++at_;
    return out;
  }

  // Values.
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
  Id make_float(double value) { return make(Kind::kFloat, 0, std::bit_cast<uint64_t>(value)); }
  Id make_named(Kind kind, const std::string& name, uint64_t bits = 0) {
    const auto [found, is_new] = name_index_.emplace(name, p_.names_.size());
    if (is_new) grow(8), p_.names_.push_back(name);
    return make(kind, found->second, bits);
  }
  // Bytes that are not in the file as they are. Texts can be shared by many, so the sum is bounded as well.
  std::span<const std::byte> own(std::vector<std::byte> bytes) {
    owned_size_ += bytes.size();
    if (owned_size_ > 2 * bytes_.size()) fail("the same text is decoded again and again");
    return p_.owned_.emplace_back(std::move(bytes));
  }

  // Counts what operations copy. One on shared objects can copy more than its own bytes: the sum is bounded.
  void grow(size_t items) {
    grown_ += items;
    if (grown_ > 16 * at_ + 1024) fail("the same objects are copied again and again");
  }

  Kind kind(Id id) const { return p_.kind(id); }
  bool is_opaque(Id id) const { return kind(id) == Kind::kOpaque; }
  const std::vector<Id>& items(Id id) const { return p_.sequences_[p_.values_[id].index]; }
  const std::vector<Id>& tuple(Id id) const {
    if (kind(id) != Kind::kTuple) fail("a tuple was expected");
    return items(id);
  }
  int64_t size_value(Id id) const {
    if (kind(id) != Kind::kInt || static_cast<int64_t>(p_.values_[id].bits) < 0) fail("a size was expected");
    return static_cast<int64_t>(p_.values_[id].bits);
  }
  std::string_view text_value(Id id) const {
    if (kind(id) != Kind::kText && kind(id) != Kind::kBytes) fail("a text was expected");
    return p_.texts_[p_.values_[id].index];
  }

  // The stack. Nothing below the last mark may be taken.
  void push(Id id) { stack_.push_back(id); }
  Id pop() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) fail("a value is missing");
    const Id id = stack_.back();
    stack_.pop_back();
    return id;
  }
  Id top() const {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) fail("a value is missing");
    return stack_.back();
  }
  std::vector<Id> pop_to_mark() {
    if (marks_.empty()) fail("a mark is missing");
    const auto begin = stack_.begin() + marks_.back();
    std::vector<Id> out(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return out;
  }

  void memo_put(size_t index) {
    // Picklers count from 0; an index beyond the bytes read so far cannot have been counted.
    if (index > at_) fail("a memo index is out of range");
    if (index >= memo_.size()) memo_.resize(index + 1, kNothing);
    memo_[index] = top();
  }
  void memo_get(size_t index) {
    if (index >= memo_.size() || memo_[index] == kNothing) fail("a memo index is out of range");
    push(memo_[index]);
  }

  Id long_value(std::span<const std::byte> bytes) {
    if (bytes.size() > 8)
      return make_text(Kind::kBigInt, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    uint64_t value = 0;
    for (size_t i = 0; i < bytes.size(); ++i) value |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
    if (!bytes.empty() && bytes.size() < 8 && (bytes.back() & std::byte{0x80}) != std::byte{0})
      value |= ~uint64_t{0} << (8 * bytes.size());
    return make(Kind::kInt, 0, value);
  }

  void append(Id list, std::span<const Id> items) {
    if (is_opaque(list)) return;
    if (kind(list) != Kind::kList) fail("something is appended to what is no list");
    grow(items.size());
    auto& target = p_.sequences_[p_.values_[list].index];
    target.insert(target.end(), items.begin(), items.end());
  }
  void set_items(Id dict, std::span<const Id> items) {
    if (is_opaque(dict)) return;
    if (kind(dict) != Kind::kDict || items.size() % 2 != 0) fail("a key is set in what is no dict");
    grow(items.size());
    auto& target = p_.sequences_[p_.values_[dict].index];
    target.insert(target.end(), items.begin(), items.end());
  }

  // Names.
  Id global(std::string_view module, std::string_view name) {
    const std::string full = printable(cat(module, ".", name));
    if (const auto row = find_name(module, name)) {
      const NameRow& found = kNames[*row];
      if (found.call == Call::kTorchDtype)
        return make_named(Kind::kDtype, full, static_cast<uint64_t>(found.dtype));
      return make_named(Kind::kName, full, *row);
    }
    if (unknown_ == UnknownNames::kRefuse)
      throw InputError(cat(where_, ": its pickle uses ", full,
                           ", which tensors do not need; refused, and nothing in it was executed"));
    if (!name_index_.contains("? " + full)) {
      name_index_.emplace("? " + full, 0);
      p_.refused_.push_back(full);
    }
    return opaque(full);
  }
  Id opaque(const std::string& name) { return make_named(Kind::kOpaque, name); }
  const NameRow* row_of(Id id) const {
    return kind(id) == Kind::kName ? &kNames[static_cast<size_t>(p_.values_[id].bits)] : nullptr;
  }

  // Tensors.
  Id make_tensor(uint32_t storage_index, DType dtype, uint64_t offset, std::vector<int64_t> shape,
                 std::vector<int64_t> strides) {
    const Pickle::Storage& storage = p_.storages_[storage_index];
    if (shape.size() != strides.size() || shape.size() > kMaxRank)
      fail("a tensor's shape and strides do not fit");
    // Elements that the storage has, in the tensor's own type.
    const uint64_t available = storage.untyped ? storage.count / size_of(dtype) : storage.count;
    uint64_t bytes = size_of(dtype), last = offset;
    bool empty = false, overflow = offset > uint64_t{INT64_MAX};
    for (size_t i = 0; i < shape.size(); ++i) {
      const auto size = static_cast<uint64_t>(shape[i]), stride = static_cast<uint64_t>(strides[i]);
      empty = empty || size == 0;
      uint64_t reach = 0;
      overflow = overflow || __builtin_mul_overflow(bytes, std::max<uint64_t>(size, 1), &bytes) ||
                 bytes > uint64_t{INT64_MAX};
      overflow = overflow || __builtin_mul_overflow(size == 0 ? 0 : size - 1, stride, &reach) ||
                 __builtin_add_overflow(last, reach, &last);
    }
    if (overflow) fail("a tensor's shape is too large");
    grow(2 * shape.size());
    if (empty ? offset > available : last >= available)
      fail(cat("a tensor reaches element ", empty ? offset : last, " of a storage of ", available));
    p_.tensors_.push_back({storage_index, dtype, offset, std::move(shape), std::move(strides)});
    return make(Kind::kTensor, p_.tensors_.size() - 1);
  }
  std::vector<int64_t> sizes(Id id) const {
    // Old files hold torch.Size and lists here.
    if (kind(id) != Kind::kTuple && kind(id) != Kind::kList) fail("a shape was expected");
    std::vector<int64_t> out;
    if (items(id).size() > kMaxRank) fail("a shape of too many dimensions");
    for (const Id item : items(id)) out.push_back(size_value(item));
    return out;
  }
  Id rebuild(const std::vector<Id>& args, size_t least, bool own_dtype) {
    if (args.size() < least) fail("a tensor lacks arguments");
    if (is_opaque(args[0])) return args[0];
    if (kind(args[0]) != Kind::kStorage) fail("a tensor without a storage");
    const uint32_t index = p_.values_[args[0]].index;
    DType dtype = p_.storages_[index].dtype;
    if (own_dtype) {
      if (is_opaque(args[6])) return args[6];
      if (kind(args[6]) != Kind::kDtype) fail("a tensor without a dtype");
      dtype = static_cast<DType>(p_.values_[args[6]].bits);
      if (!p_.storages_[index].untyped && dtype != p_.storages_[index].dtype)
        fail("a tensor's type is not its storage's");
    } else if (p_.storages_[index].untyped) {
      fail("a tensor without a dtype");
    }
    return make_tensor(index, dtype, static_cast<uint64_t>(size_value(args[1])), sizes(args[2]),
                       sizes(args[3]));
  }

  // ("storage", type, key, location, count[, view]) of torch's persistent ids.
  Id persistent(Id id) {
    const auto& args = tuple(id);
    if (args.size() < 5 || args.size() > 6 || text_value(args[0]) != "storage")
      fail("an unknown persistent id");
    if (is_opaque(args[1])) return args[1];
    const NameRow* row = row_of(args[1]);
    if (row == nullptr || (row->call != Call::kStorageType && row->call != Call::kUntypedStorage))
      fail("a storage of no known type");
    Pickle::Storage storage{std::string(text_value(args[2])), row->dtype,
                            static_cast<uint64_t>(size_value(args[4]))};
    if (storage.key.size() > kMaxName) fail("a storage's key is too long");
    if (storage.count > uint64_t{INT64_MAX} / 8) fail("a storage is too large");
    storage.untyped = row->call == Call::kUntypedStorage;
    storage.total = storage.count;
    if (args.size() == 6 && kind(args[5]) != Kind::kNone) {
      const auto& view = tuple(args[5]);
      if (view.size() != 3) fail("a storage's view is damaged");
      storage.begin = static_cast<uint64_t>(size_value(view[1]));
      storage.count = static_cast<uint64_t>(size_value(view[2]));
    }
    // Tensors that share a storage name it again each time.
    const auto key =
        std::tuple(storage.key, storage.dtype, storage.untyped, storage.begin, storage.count, storage.total);
    const auto [found, is_new] = storage_index_.emplace(key, p_.storages_.size());
    if (is_new) grow(16), p_.storages_.push_back(std::move(storage));
    return make(Kind::kStorage, found->second);
  }

  // numpy.
  std::optional<DType> dtype_value(Id id) const {
    if (kind(id) != Kind::kDtype) return std::nullopt;
    return static_cast<DType>(p_.values_[id].bits);
  }
  Id numpy_dtype(const std::vector<Id>& args) {
    if (args.empty()) fail("a numpy dtype without a name");
    const std::string_view name = text_value(args[0]);
    for (const NumpyRow& row : kNumpyDtypes)
      if (name == row.text)
        return make_named(Kind::kDtype, cat("numpy.", row.text), static_cast<uint64_t>(row.dtype));
    return opaque(printable(cat("numpy.dtype.", name)));  // objects, texts, dates
  }
  Id numpy_scalar(const std::vector<Id>& args) {
    if (args.size() != 2) fail("a numpy scalar needs a type and its bytes");
    const auto dtype = dtype_value(args[0]);
    if (!dtype) return args[0];
    const std::string_view raw = text_value(args[1]);
    if (raw.size() != size_of(*dtype)) fail("a numpy scalar has too few or too many bytes");
    uint64_t bits = 0;
    for (size_t i = 0; i < raw.size(); ++i) bits |= uint64_t{static_cast<uint8_t>(raw[i])} << (8 * i);
    const auto sign_extended = [&] {
      const unsigned shift = 64 - 8 * static_cast<unsigned>(raw.size());
      return static_cast<int64_t>(bits << shift) >> shift;
    };
    switch (*dtype) {
      case DType::kBool:
        return make(Kind::kBool, 0, bits != 0);
      case DType::kF64:
        return make_float(std::bit_cast<double>(bits));
      case DType::kF32:
        return make_float(std::bit_cast<float>(static_cast<uint32_t>(bits)));
      case DType::kF16:
        return make_float(float_from_half(static_cast<uint16_t>(bits)));
      case DType::kI8:
      case DType::kI16:
      case DType::kI32:
      case DType::kI64:
        return make_int(sign_extended());
      default:
        break;
    }
    if (bits > uint64_t{INT64_MAX}) return make_text(Kind::kBigInt, raw);
    return make_int(static_cast<int64_t>(bits));
  }
  // Fills the value `id` with a numpy array, or makes it opaque where its type is not read.
  void numpy_array(Id id, Id shape_id, Id dtype_id, Id data_id, bool fortran) {
    const auto dtype = dtype_value(dtype_id);
    if (!dtype) {
      p_.values_[id] = p_.values_[dtype_id];
      return;
    }
    const std::string_view raw = text_value(data_id);
    const std::vector<int64_t> shape = sizes(shape_id);
    std::vector<int64_t> strides(shape.size());
    uint64_t step = 1;
    for (size_t i = 0; i < shape.size(); ++i) {
      const size_t axis = fortran ? i : shape.size() - 1 - i;
      strides[axis] = static_cast<int64_t>(std::min<uint64_t>(step, INT64_MAX));
      if (__builtin_mul_overflow(step, static_cast<uint64_t>(shape[axis]), &step))
        fail("a numpy array is too large");
    }
    if (step > raw.size() || step * size_of(*dtype) != raw.size())
      fail("a numpy array has too few or too many bytes");
    Pickle::Storage storage{"", *dtype, step};
    storage.total = step;
    storage.content = {reinterpret_cast<const std::byte*>(raw.data()), raw.size()};
    p_.storages_.push_back(std::move(storage));
    const Id made = make_tensor(static_cast<uint32_t>(p_.storages_.size() - 1), *dtype, 0, shape, strides);
    p_.values_[id] = p_.values_[made];
  }

  // bytes of Python 3 in protocol 2: _codecs.encode(text, "latin1").
  Id encode(const std::vector<Id>& args) {
    if (args.size() != 2 || (text_value(args[1]) != "latin1" && text_value(args[1]) != "latin-1"))
      fail("bytes in an unknown encoding");
    const std::string_view text = text_value(args[0]);
    std::vector<std::byte> out;
    out.reserve(text.size());
    for (size_t i = 0; i < text.size(); ++i) {
      const auto c = static_cast<uint8_t>(text[i]);
      if (c < 0x80) {
        out.push_back(std::byte{c});
      } else {
        const uint8_t next = i + 1 < text.size() ? static_cast<uint8_t>(text[i + 1]) : 0;
        if ((c != 0xC2 && c != 0xC3) || (next & 0xC0) != 0x80) fail("bytes that are no latin1");
        out.push_back(std::byte{static_cast<uint8_t>((c & 3) << 6 | (next & 0x3F))});
        ++i;
      }
    }
    const auto kept = own(std::move(out));
    return make_text(Kind::kBytes, {reinterpret_cast<const char*>(kept.data()), kept.size()});
  }
  Id path_text(const std::vector<Id>& parts) {
    std::vector<std::byte> out;
    for (const Id part : parts) {
      if (!out.empty() && out.back() != std::byte{'/'}) out.push_back(std::byte{'/'});
      for (const char c : text_value(part)) out.push_back(static_cast<std::byte>(c));
    }
    const auto kept = own(std::move(out));
    return make_text(Kind::kText, {reinterpret_cast<const char*>(kept.data()), kept.size()});
  }

  Id reduce(Id function, Id arguments) {
    const std::vector<Id> args = tuple(arguments);  // a copy: new sequences may move the old ones
    grow(args.size());
    if (is_opaque(function)) return function;
    const NameRow* row = row_of(function);
    if (row == nullptr) fail("a call of what is no name");
    switch (row->call) {
      case Call::kRebuildTensor:
        return rebuild(args, 4, false);
      case Call::kRebuildTensorV2:
        return rebuild(args, 6, false);
      case Call::kRebuildTensorV3:
        return rebuild(args, 7, true);
      case Call::kRebuildParameter:
        if (args.empty() || (kind(args[0]) != Kind::kTensor && !is_opaque(args[0])))
          fail("a parameter without a tensor");
        return args[0];
      case Call::kRebuildFromType: {
        if (args.size() != 4) fail("a tensor lacks arguments");
        for (const Id id : {args[0], args[1]})
          if (is_opaque(id)) return id;
        const NameRow* inner = row_of(args[0]);
        const NameRow* type = row_of(args[1]);
        if (inner == nullptr || inner->call > Call::kRebuildParameter || type == nullptr ||
            type->call != Call::kTensorType)
          fail("a tensor of an unknown type");
        return reduce(args[0], args[2]);
      }
      case Call::kTorchSize:
      case Call::kTuple:
      case Call::kList:
      case Call::kSet: {
        const Kind made =
            row->call == Call::kTorchSize || row->call == Call::kTuple ? Kind::kTuple : Kind::kList;
        if (args.empty()) return make_sequence(made);
        if (args.size() != 1 || (kind(args[0]) != Kind::kTuple && kind(args[0]) != Kind::kList))
          fail("a list was expected");
        return make(made, p_.values_[args[0]].index);
      }
      case Call::kTorchDevice:
        return args.empty() ? make(Kind::kNone) : args[0];
      case Call::kDefaultDict:
        return make_sequence(Kind::kDict);
      case Call::kDict:
      case Call::kOrderedDict: {
        const Id dict = make_sequence(Kind::kDict);
        if (args.empty()) return dict;
        // Python 2 wrote OrderedDict([[key, value], ...]).
        if (args.size() != 1 || kind(args[0]) != Kind::kList) fail("a dict of unknown form");
        for (const Id pair : std::vector<Id>(items(args[0]))) {
          if ((kind(pair) != Kind::kList && kind(pair) != Kind::kTuple) || items(pair).size() != 2)
            fail("a dict of unknown form");
          set_items(dict, std::vector<Id>(items(pair)));
        }
        return dict;
      }
      case Call::kNamespace:
        if (!args.empty()) fail("a Namespace of unknown form");
        return make_sequence(Kind::kDict);
      case Call::kBytes:
        if (args.empty()) return make_text(Kind::kBytes, {});
        if (args.size() == 1 && kind(args[0]) == Kind::kBytes) return args[0];
        return encode(args);  // bytearray(text, "latin-1")
      case Call::kEncode:
        return encode(args);
      case Call::kPath:
        return path_text(args);
      case Call::kNumpyDtype:
        return numpy_dtype(args);
      case Call::kNumpyScalar:
        return numpy_scalar(args);
      case Call::kNumpyReconstruct:
        return opaque("numpy.ndarray");  // its contents follow in a BUILD
      case Call::kNumpyFromBuffer: {
        if (args.size() != 4) fail("a numpy array of unknown form");
        const Id array = opaque("numpy.ndarray");
        numpy_array(array, args[2], args[1], args[0], text_value(args[3]) == "F");
        return array;
      }
      case Call::kTensorType:
      case Call::kStorageType:
      case Call::kUntypedStorage:
      case Call::kTorchDtype:
      case Call::kType:
      case Call::kNumpyArrayType:
        break;
    }
    fail(cat("a call of ", p_.names_[p_.values_[function].index]));
  }

  // object.__setstate__ or object.__dict__.update.
  void build(Id object, Id state) {
    switch (kind(object)) {
      case Kind::kDict:
        // A Namespace's settings are its state. An OrderedDict's state is its attributes: _metadata (versions
        // of torch's modules), of no use here; its items come as SETITEMS.
        if (namespaces_.contains(object) && kind(state) == Kind::kDict)
          set_items(object, std::vector<Id>(items(state)));
        return;
      case Kind::kDtype: {
        const auto& fields = tuple(state);
        if (fields.size() >= 2 && kind(fields[1]) == Kind::kText && text_value(fields[1]) == ">")
          throw InputError(cat(
              where_, ": holds big-endian numbers, which are not read; save it on a little-endian machine"));
        return;
      }
      case Kind::kOpaque:
        // (version, shape, dtype, Fortran order, bytes or a list of objects)
        if (p_.name(object) == "numpy.ndarray" && kind(state) == Kind::kTuple && items(state).size() == 5) {
          const std::vector<Id> fields = items(state);
          if (kind(fields[3]) != Kind::kBool) fail("a numpy array of unknown form");
          numpy_array(object, fields[1], fields[2], fields[4], p_.values_[fields[3]].bits != 0);
        }
        return;
      case Kind::kTensor:
        return;  // attributes of a parameter
      default:
        fail("a state for what has none");
    }
  }

  Id new_object(Id type, Id arguments) {
    const Id made = reduce(type, arguments);
    const NameRow* row = row_of(type);
    if (row != nullptr && row->call == Call::kNamespace) namespaces_.emplace(made, true);
    return made;
  }

  // One operation; true at STOP.
  bool step() {
    const auto op = std::to_integer<uint8_t>(take(1)[0]);
    switch (op) {
      case 0x80: {  // PROTO
        const uint8_t protocol = number<uint8_t>();
        if (protocol < 2 || protocol > 5) fail(cat("protocol ", int{protocol}, "; 2 to 5 are read"));
        return false;
      }
      case '.':
        return true;
      case 0x95:
        number<uint64_t>();
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
        push(make(Kind::kNone));
        return false;
      case 0x88:
        push(make(Kind::kBool, 0, 1));
        return false;
      case 0x89:
        push(make(Kind::kBool, 0, 0));
        return false;
      case 'J':
        push(make_int(static_cast<int32_t>(number<uint32_t>())));
        return false;
      case 'K':
        push(make_int(number<uint8_t>()));
        return false;
      case 'M':
        push(make_int(number<uint16_t>()));
        return false;
      case 0x8a:
        push(long_value(take(number<uint8_t>())));
        return false;
      case 0x8b:
        push(long_value(take(number<uint32_t>())));
        return false;
      case 'G': {  // the one big-endian number
        uint64_t bits = 0;
        for (const std::byte byte : take(8)) bits = bits << 8 | std::to_integer<uint64_t>(byte);
        push(make(Kind::kFloat, 0, bits));
        return false;
      }

      case 0x8c:
        push(make_text(Kind::kText, text(number<uint8_t>())));
        return false;
      case 'X':
        push(make_text(Kind::kText, text(number<uint32_t>())));
        return false;
      case 0x8d:
        push(make_text(Kind::kText, text(number<uint64_t>())));
        return false;
      case 'U':
        push(make_text(Kind::kText, text(number<uint8_t>())));
        return false;  // str of Python 2
      case 'T':
        push(make_text(Kind::kText, text(number<uint32_t>())));
        return false;
      case 'C':
        push(make_text(Kind::kBytes, text(number<uint8_t>())));
        return false;
      case 'B':
        push(make_text(Kind::kBytes, text(number<uint32_t>())));
        return false;
      case 0x8e:
        push(make_text(Kind::kBytes, text(number<uint64_t>())));
        return false;
      case 0x96:
        push(make_text(Kind::kBytes, text(number<uint64_t>())));
        return false;  // BYTEARRAY8

      case ']':
        push(make_sequence(Kind::kList));
        return false;
      case 0x8f:
        push(make_sequence(Kind::kList));
        return false;  // EMPTY_SET
      case ')':
        push(make_sequence(Kind::kTuple));
        return false;
      case '}':
        push(make_sequence(Kind::kDict));
        return false;
      case 'l':
        push(make_sequence(Kind::kList, pop_to_mark()));
        return false;
      case 0x91:
        push(make_sequence(Kind::kList, pop_to_mark()));
        return false;  // FROZENSET
      case 't':
        push(make_sequence(Kind::kTuple, pop_to_mark()));
        return false;
      case 'd': {
        const std::vector<Id> pairs = pop_to_mark();
        const Id dict = make_sequence(Kind::kDict);
        set_items(dict, pairs);
        push(dict);
        return false;
      }
      case 0x85:
      case 0x86:
      case 0x87: {  // TUPLE1..3
        std::vector<Id> items(op - 0x84);
        for (size_t i = items.size(); i-- > 0;) items[i] = pop();
        push(make_sequence(Kind::kTuple, std::move(items)));
        return false;
      }
      case 'a': {
        const Id item = pop();
        append(top(), {&item, 1});
        return false;
      }
      case 'e':
      case 0x90: {  // APPENDS, ADDITEMS
        const std::vector<Id> items = pop_to_mark();
        append(top(), items);
        return false;
      }
      case 's': {
        const Id value = pop(), key = pop(), pair[] = {key, value};
        set_items(top(), pair);
        return false;
      }
      case 'u': {
        const std::vector<Id> pairs = pop_to_mark();
        set_items(top(), pairs);
        return false;
      }

      case 'q':
        memo_put(number<uint8_t>());
        return false;
      case 'r':
        memo_put(number<uint32_t>());
        return false;
      case 0x94:
        memo_put(memo_.size());
        return false;
      case 'h':
        memo_get(number<uint8_t>());
        return false;
      case 'j':
        memo_get(number<uint32_t>());
        return false;

      case 'c': {
        const std::string_view module = line();
        push(global(module, line()));
        return false;
      }
      case 0x93: {  // STACK_GLOBAL
        const Id name = pop(), module = pop();
        push(global(text_value(module).substr(0, kMaxName), text_value(name).substr(0, kMaxName)));
        return false;
      }
      case 'R': {
        const Id arguments = pop(), function = pop();
        push(new_object(function, arguments));
        return false;
      }
      case 0x81: {  // NEWOBJ
        const Id arguments = pop(), type = pop();
        push(new_object(type, arguments));
        return false;
      }
      case 0x92: {  // NEWOBJ_EX
        const Id keywords = pop(), arguments = pop(), type = pop();
        if (!is_opaque(type) && (kind(keywords) != Kind::kDict || !items(keywords).empty()))
          fail("an object with keyword arguments");
        push(new_object(type, arguments));
        return false;
      }
      case 'b': {
        const Id state = pop();
        build(top(), state);
        return false;
      }
      case 'Q':
        push(persistent(pop()));
        return false;
      default:
        break;
    }
    --at_;
    constexpr char kHex[] = "0123456789abcdef";
    fail(cat("the operation 0x", kHex[op >> 4], kHex[op & 15], ", which is not read"));
  }

  std::span<const std::byte> bytes_;
  const std::string& where_;
  UnknownNames unknown_;
  size_t at_ = 0;
  Pickle p_;
  std::vector<Id> stack_, memo_;
  std::vector<uint32_t> marks_;
  std::map<std::string, size_t> name_index_;
  std::map<std::tuple<std::string, DType, bool, uint64_t, uint64_t, uint64_t>, size_t> storage_index_;
  std::map<Id, bool> namespaces_;
  uint64_t owned_size_ = 0, grown_ = 0;
};

Pickle Pickle::parse(std::span<const std::byte> bytes, const std::string& where, UnknownNames unknown) {
  return PickleReader(bytes, where, unknown).run();
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
const Pickle::Id* Pickle::find(Id dict, std::string_view key) const {
  if (dict >= values_.size() || values_[dict].kind != Kind::kDict) return nullptr;
  const auto& pairs = sequences_[values_[dict].index];
  for (size_t i = pairs.size(); i > 0; i -= 2)
    if (values_[pairs[i - 2]].kind == Kind::kText && texts_[values_[pairs[i - 2]].index] == key)
      return &pairs[i - 1];
  return nullptr;
}

}  // namespace adanat
