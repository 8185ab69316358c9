#include "core/io/pickle_objects.h"

#include <algorithm>

#include "core/base/error.h"
#include "core/base/text.h"
#include "core/io/float16.h"

namespace adanat {
namespace {

constexpr size_t kMaxRank = 16;  // of tensors; eight is the most that anybody uses

}  // namespace

Pickle PickleObjects::finish(Id root) {
  p_.root_ = root;
  p_.size_ = in_.at();
  for (const Pickle::Storage& storage : p_.storages_)
    if (storage.begin > storage.total || storage.count > storage.total - storage.begin)
      fail(cat("the view of storage ", printable(storage.key), " lies outside of it"));
  return std::move(p_);
}

Pickle::Id PickleObjects::make_named(Kind kind, const std::string& name, uint64_t bits) {
  const auto [found, is_new] = name_index_.emplace(name, p_.names_.size());
  if (is_new) grow(8), p_.names_.push_back(name);
  return make(kind, found->second, bits);
}

std::span<const std::byte> PickleObjects::own(std::vector<std::byte> bytes) {
  owned_size_ += bytes.size();
  if (owned_size_ > 2 * in_.size()) fail("the same text is decoded again and again");
  return p_.owned_.emplace_back(std::move(bytes));
}

void PickleObjects::grow(size_t items) {
  grown_ += items;
  if (grown_ > 16 * in_.at() + 1024) fail("the same objects are copied again and again");
}

const std::vector<Pickle::Id>& PickleObjects::tuple(Id id) const {
  if (kind(id) != Kind::kTuple) fail("a tuple was expected");
  return items(id);
}

int64_t PickleObjects::size_value(Id id) const {
  if (kind(id) != Kind::kInt || static_cast<int64_t>(p_.values_[id].bits) < 0) fail("a size was expected");
  return static_cast<int64_t>(p_.values_[id].bits);
}

std::string_view PickleObjects::text_value(Id id) const {
  if (kind(id) != Kind::kText && kind(id) != Kind::kBytes) fail("a text was expected");
  return p_.texts_[p_.values_[id].index];
}

Pickle::Id PickleObjects::long_value(std::span<const std::byte> bytes) {
  if (bytes.size() > 8)
    return make_text(Kind::kBigInt, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  uint64_t value = 0;
  for (size_t i = 0; i < bytes.size(); ++i) value |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  if (!bytes.empty() && bytes.size() < 8 && (bytes.back() & std::byte{0x80}) != std::byte{0})
    value |= ~uint64_t{0} << (8 * bytes.size());
  return make(Kind::kInt, 0, value);
}

Pickle::Id PickleObjects::items_of(Id object, Kind kind) {
  const auto found = unknown_items_.find(object);
  if (found != unknown_items_.end() && this->kind(found->second) == kind) return found->second;
  const Id items = make_sequence(kind);
  unknown_items_[object] = items;
  add_contents(object, items);
  return items;
}

void PickleObjects::add_contents(Id object, Id contents) {
  grow(4);
  const auto [found, is_new] = p_.contents_.try_emplace(object, contents);
  if (!is_new) found->second = make_sequence(Kind::kTuple, {found->second, contents});
}

void PickleObjects::append(Id list, std::span<const Id> items) {
  if (is_opaque(list)) list = items_of(list, Kind::kList);
  if (kind(list) != Kind::kList) fail("something is appended to what is no list");
  grow(items.size());
  auto& target = p_.sequences_[p_.values_[list].index];
  target.insert(target.end(), items.begin(), items.end());
}

void PickleObjects::set_items(Id dict, std::span<const Id> items) {
  if (is_opaque(dict)) dict = items_of(dict, Kind::kDict);
  if (kind(dict) != Kind::kDict || items.size() % 2 != 0) fail("a key is set in what is no dict");
  grow(items.size());
  auto& target = p_.sequences_[p_.values_[dict].index];
  target.insert(target.end(), items.begin(), items.end());
}

Pickle::Id PickleObjects::global(std::string_view module, std::string_view name) {
  const std::string full = printable(cat(module, ".", name));
  if (const auto row = find_pickle_name(module, name)) {
    const PickleName& found = pickle_name(*row);
    if (found.call == PickleCall::kTorchDtype)
      return make_named(Kind::kDtype, full, static_cast<uint64_t>(found.dtype));
    return make_named(Kind::kName, full, *row);
  }
  return not_read(full, cat("its pickle uses ", full,
                            ", which tensors do not need; refused, and nothing in it was executed (adanat "
                            "info lists what is in the file)"));
}

Pickle::Id PickleObjects::not_read(const std::string& name, const std::string& refusal) {
  if (unknown_ == UnknownNames::kRefuse) throw InputError(cat(in_.where(), ": ", refusal));
  if (name_index_.emplace("? " + name, 0).second) p_.refused_.push_back(name);
  return opaque(name);
}

Pickle::Id PickleObjects::opaque_object(Id type, Id from) {
  const Id made = make(Kind::kOpaque, p_.values_[type].index);
  if (kind(from) == Kind::kTuple && !items(from).empty()) grow(4), p_.arguments_[made] = from;
  return made;
}

const PickleName* PickleObjects::row_of(Id id) const {
  return kind(id) == Kind::kName ? &pickle_name(static_cast<size_t>(p_.values_[id].bits)) : nullptr;
}

Pickle::Id PickleObjects::make_tensor(uint32_t storage_index, DType dtype, uint64_t offset,
                                      std::vector<int64_t> shape, std::vector<int64_t> strides) {
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

std::vector<int64_t> PickleObjects::sizes(Id id) const {
  // Old files hold torch.Size and lists here.
  if (kind(id) != Kind::kTuple && kind(id) != Kind::kList) fail("a shape was expected");
  std::vector<int64_t> out;
  if (items(id).size() > kMaxRank) fail("a shape of too many dimensions");
  for (const Id item : items(id)) out.push_back(size_value(item));
  return out;
}

Pickle::Id PickleObjects::rebuild(const std::vector<Id>& args, size_t least, bool own_dtype) {
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
  // Its last argument says what torch put off until the tensor is read: {"conj": True, "neg": True}.
  const size_t put_off = own_dtype ? 7 : 6;
  if (args.size() > put_off && kind(args[put_off]) == Kind::kDict) {
    const auto& pairs = items(args[put_off]);
    for (size_t i = 1; i < pairs.size(); i += 2)
      if (kind(pairs[i]) == Kind::kBool && p_.values_[pairs[i]].bits != 0)
        return not_read(
            "a tensor whose negation or conjugation was put off",
            "holds a tensor whose negation or conjugation torch has put off, which is not read; save "
            "it after resolve_neg() and resolve_conj()");
  }
  return make_tensor(index, dtype, static_cast<uint64_t>(size_value(args[1])), sizes(args[2]),
                     sizes(args[3]));
}

Pickle::Id PickleObjects::persistent(Id id) {
  const auto& args = tuple(id);
  if (args.size() < 5 || args.size() > 6 || text_value(args[0]) != "storage")
    fail("an unknown persistent id");
  if (is_opaque(args[1])) return args[1];
  const PickleName* row = row_of(args[1]);
  if (row == nullptr || (row->call != PickleCall::kStorageType && row->call != PickleCall::kUntypedStorage))
    fail("a storage of no known type");
  Pickle::Storage storage{std::string(text_value(args[2])), row->dtype,
                          static_cast<uint64_t>(size_value(args[4]))};
  if (storage.key.size() > PickleInput::kMaxName) fail("a storage's key is too long");
  if (storage.count > uint64_t{INT64_MAX} / 8) fail("a storage is too large");
  storage.untyped = row->call == PickleCall::kUntypedStorage;
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

std::optional<DType> PickleObjects::dtype_value(Id id) const {
  if (kind(id) != Kind::kDtype) return std::nullopt;
  return static_cast<DType>(p_.values_[id].bits);
}

Pickle::Id PickleObjects::numpy_dtype(const std::vector<Id>& args) {
  if (args.empty()) fail("a numpy dtype without a name");
  const std::string_view name = text_value(args[0]);
  if (const auto dtype = numpy_dtype_named(name))
    return make_named(Kind::kDtype, cat("numpy.", name), static_cast<uint64_t>(*dtype));
  return opaque(printable(cat("numpy.dtype.", name)));  // objects, texts, dates
}

Pickle::Id PickleObjects::numpy_scalar(const std::vector<Id>& args) {
  if (args.size() != 2) fail("a numpy scalar needs a type and its bytes");
  const auto dtype = dtype_value(args[0]);
  if (!dtype) return args[0];
  if (*dtype > DType::kU64 || *dtype == DType::kBF16)
    fail("a numpy scalar of a type that numpy does not have");
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

void PickleObjects::numpy_array(Id id, Id shape_id, Id dtype_id, Id data_id, bool fortran) {
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

Pickle::Id PickleObjects::encode(const std::vector<Id>& args) {
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

Pickle::Id PickleObjects::joined(const std::vector<Id>& parts, char separator) {
  std::vector<std::byte> out;
  for (const Id part : parts) {
    if (!out.empty() && out.back() != std::byte(separator)) out.push_back(std::byte(separator));
    const std::string number = kind(part) == Kind::kInt ? std::to_string(p_.as_int(part)) : std::string();
    for (const char c : kind(part) == Kind::kInt ? number : text_value(part))
      out.push_back(static_cast<std::byte>(c));
  }
  const auto kept = own(std::move(out));
  return make_text(Kind::kText, {reinterpret_cast<const char*>(kept.data()), kept.size()});
}

Pickle::Id PickleObjects::reduce(Id function, Id arguments) {
  const std::vector<Id> args = tuple(arguments);  // a copy: new sequences may move the old ones
  grow(args.size());
  if (is_opaque(function)) return opaque_object(function, arguments);
  const PickleName* row = row_of(function);
  if (row == nullptr) fail("a call of what is no name");
  switch (row->call) {
    case PickleCall::kRebuildTensor:
      return rebuild(args, 4, false);
    case PickleCall::kRebuildTensorV2:
      return rebuild(args, 6, false);
    case PickleCall::kRebuildTensorV3:
      return rebuild(args, 7, true);
    case PickleCall::kRebuildParameter:
      if (args.empty() || (kind(args[0]) != Kind::kTensor && !is_opaque(args[0])))
        fail("a parameter without a tensor");
      return args[0];
    case PickleCall::kRebuildFromType: {
      if (args.size() != 4) fail("a tensor lacks arguments");
      for (const Id id : {args[0], args[1]})
        if (is_opaque(id)) return id;
      const PickleName* inner = row_of(args[0]);
      const PickleName* type = row_of(args[1]);
      if (inner == nullptr || inner->call > PickleCall::kRebuildParameter || type == nullptr ||
          type->call != PickleCall::kTensorType)
        fail("a tensor of an unknown type");
      return reduce(args[0], args[2]);
    }
    case PickleCall::kTorchSize:
    case PickleCall::kTuple:
    case PickleCall::kList:
    case PickleCall::kSet: {
      const Kind made =
          row->call == PickleCall::kTorchSize || row->call == PickleCall::kTuple ? Kind::kTuple : Kind::kList;
      if (args.empty()) return make_sequence(made);
      if (args.size() != 1 || (kind(args[0]) != Kind::kTuple && kind(args[0]) != Kind::kList))
        fail("a list was expected");
      return make(made, p_.values_[args[0]].index);
    }
    case PickleCall::kTorchDevice:
      if (args.size() == 2 && kind(args[0]) == Kind::kText && kind(args[1]) == Kind::kInt)
        return joined({args[0], args[1]}, ':');
      return args.empty() ? make(Kind::kNone) : args[0];
    case PickleCall::kDefaultDict:
      return make_sequence(Kind::kDict);
    case PickleCall::kDict:
    case PickleCall::kOrderedDict: {
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
    case PickleCall::kNamespace:
      if (!args.empty()) fail("a Namespace of unknown form");
      return make_sequence(Kind::kDict);
    case PickleCall::kBytes:
      if (args.empty()) return make_text(Kind::kBytes, {});
      if (args.size() == 1 && kind(args[0]) == Kind::kBytes) return args[0];
      return encode(args);  // bytearray(text, "latin-1")
    case PickleCall::kEncode:
      return encode(args);
    case PickleCall::kPath:
      return joined(args, '/');
    case PickleCall::kNumpyDtype:
      return numpy_dtype(args);
    case PickleCall::kNumpyScalar:
      return numpy_scalar(args);
    case PickleCall::kNumpyReconstruct:
      return opaque("numpy.ndarray");  // its contents follow in a BUILD
    case PickleCall::kNumpyFromBuffer: {
      if (args.size() != 4) fail("a numpy array of unknown form");
      const Id array = opaque("numpy.ndarray");
      numpy_array(array, args[2], args[1], args[0], text_value(args[3]) == "F");
      return array;
    }
    case PickleCall::kTensorType:
    case PickleCall::kStorageType:
    case PickleCall::kUntypedStorage:
    case PickleCall::kTorchDtype:
    case PickleCall::kType:
    case PickleCall::kNumpyArrayType:
      break;
  }
  fail(cat("a call of ", p_.names_[p_.values_[function].index]));
}

void PickleObjects::build(Id object, Id state) {
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
        throw InputError(
            cat(in_.where(),
                ": holds big-endian numbers, which are not read; save it on a little-endian machine"));
      return;
    }
    case Kind::kOpaque:
      // (version, shape, dtype, Fortran order, bytes or a list of objects)
      if (p_.name(object) == "numpy.ndarray" && kind(state) == Kind::kTuple && items(state).size() == 5) {
        const std::vector<Id> fields = items(state);
        if (kind(fields[3]) != Kind::kBool) fail("a numpy array of unknown form");
        numpy_array(object, fields[1], fields[2], fields[4], p_.values_[fields[3]].bits != 0);
      } else if (!p_.name(object).starts_with("numpy.dtype.")) {  // which is no value
        add_contents(object, state);
      }
      return;
    case Kind::kTensor:
      return;  // attributes of a parameter
    default:
      fail("a state for what has none");
  }
}

Pickle::Id PickleObjects::new_object(Id type, Id arguments) {
  const Id made = reduce(type, arguments);
  const PickleName* row = row_of(type);
  if (row != nullptr && row->call == PickleCall::kNamespace) namespaces_.insert(made);
  return made;
}

}  // namespace adanat
