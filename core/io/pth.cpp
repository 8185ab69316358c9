#include "core/io/pth.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <optional>

#include "core/base/error.h"
#include "core/base/text.h"
#include "core/io/pth_tree.h"
#include "core/io/zip.h"

namespace adanat {
namespace {

constexpr std::array<uint8_t, 10> kMagic = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};
constexpr int64_t kLegacyProtocol = 1001;
// Pickles of names and numbers deflate to a tenth or a twentieth.
constexpr uint64_t kMostDeflated = 32, kSmallPickle = uint64_t{1} << 16;

bool has_magic(std::span<const std::byte> bytes) {
  // PROTO n, from protocol 4 on a frame, LONG1 with ten bytes.
  if (bytes.size() < 2 || bytes[0] != std::byte{0x80}) return false;
  const auto head = bytes.first(std::min<size_t>(bytes.size(), 32));
  return std::search(head.begin(), head.end(), kMagic.begin(), kMagic.end(),
                     [](std::byte a, uint8_t b) { return std::to_integer<uint8_t>(a) == b; }) != head.end();
}

bool is_tar(std::span<const std::byte> bytes) {
  return bytes.size() >= 512 && std::memcmp(bytes.data() + 257, "ustar", 5) == 0;
}

uint64_t load_u64(const std::byte* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | std::to_integer<uint64_t>(bytes[i]);
  return value;
}

}  // namespace

uint64_t PthTensor::count() const {
  uint64_t total = 1;
  for (const int64_t size : shape) total *= static_cast<uint64_t>(size);
  return total;
}

bool PthTensor::contiguous() const {
  if (count() == 0) return true;
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != step) return false;
    step *= shape[i];
  }
  return true;
}

struct PthFile::State {
  // Where the bytes of one storage of the pickle are.
  struct Block {
    std::span<const std::byte> bytes;  // known: legacy files, numpy arrays, storages looked at before
    const ZipEntry* entry = nullptr;   // else; looked at when it is first asked for
    uint64_t skip = 0;                 // legacy views: bytes before element 0
    std::string inflated;
  };

  std::shared_ptr<const MappedFile> file;
  std::optional<ZipFile> zip;
  std::string where, container, pickle_text;
  std::optional<Pickle> pickle;
  std::vector<Block> blocks;  // one for each of the pickle's storages
  std::mutex mutex;           // guards blocks[...].bytes and .inflated
  PthTree tree;

  void open_zip(UnknownNames unknown);
  void open_legacy(UnknownNames unknown);
};

void PthFile::State::open_zip(UnknownNames unknown) {
  container = "zip";
  zip = ZipFile::open(file);
  const ZipEntry* main = nullptr;
  for (const ZipEntry& entry : zip->entries()) {
    // NAME/data.pkl, in one folder; deeper ones belong to something else.
    const size_t slash = entry.name.find('/');
    if (slash == std::string::npos || entry.name.substr(slash) != "/data.pkl") continue;
    if (main != nullptr)
      throw InputError(
          cat(where, ": holds two objects (", printable(main->name), " and ", printable(entry.name), ")"));
    main = &entry;
  }
  if (main == nullptr)
    throw InputError(cat(where, ": is a zip archive, but no PyTorch file (it holds no data.pkl)"));
  const std::string prefix = main->name.substr(0, main->name.size() - 8);
  if (zip->find(prefix + "constants.pkl") != nullptr)
    throw InputError(
        cat(where, ": is a TorchScript archive (a program); save the model's state_dict with torch.save"));
  if (const ZipEntry* order = zip->find(prefix + "byteorder")) {
    const std::string text = zip->read(*order, 64);
    if (text == "big")
      throw InputError(
          cat(where, ": holds big-endian numbers, which are not read; save it on a little-endian machine"));
    if (text != "little") throw InputError(cat(where, ": its byteorder is damaged"));
  }
  std::span<const std::byte> bytes;
  if (main->deflated) {
    const uint64_t most = kSmallPickle + kMostDeflated * zip->data(*main).size();
    pickle_text = zip->read(*main, most);
    bytes = std::as_bytes(std::span(pickle_text));
  } else {
    zip->check_crc(*main);
    bytes = zip->data(*main);
  }
  pickle = Pickle::parse(bytes, where, unknown);
  if (pickle->size() != bytes.size())
    throw InputError(cat(where, ": bytes follow the pickle in ", printable(main->name)));

  // A deflated storage is inflated into memory; what all of them may take together is bounded by the file.
  uint64_t inflated = 0;
  for (const Pickle::Storage& storage : pickle->storages()) {
    Block& block = blocks.emplace_back();
    if (storage.content.data() != nullptr || storage.key.empty()) {
      block.bytes = storage.content;
      continue;
    }
    block.entry = zip->find(cat(prefix, "data/", storage.key));
    if (block.entry == nullptr)
      throw InputError(cat(where, ": the member ", printable(cat(prefix, "data/", storage.key)),
                           " is missing; the file is damaged"));
    const uint64_t size = storage.total * (storage.untyped ? 1 : size_of(storage.dtype));
    if (block.entry->size != size)
      throw InputError(cat(where, ": the member ", printable(block.entry->name), " has ", block.entry->size,
                           " bytes, its tensors need ", size, "; the file is damaged"));
    block.skip = storage.begin * (storage.untyped ? 1 : size_of(storage.dtype));
    if (block.entry->deflated) inflated += size;
    if (inflated > (uint64_t{64} << 20) + 16 * file->size())
      throw InputError(cat(where, ": its compressed tensors would take more than ", inflated,
                           " bytes; save it uncompressed"));
  }
}

void PthFile::State::open_legacy(UnknownNames unknown) {
  container = "legacy";
  std::span<const std::byte> rest = file->bytes();
  const auto next = [&](UnknownNames names) {
    Pickle out = Pickle::parse(rest, where, names);
    rest = rest.subspan(out.size());
    return out;
  };
  next(UnknownNames::kRefuse);  // the magic number
  const Pickle protocol = next(UnknownNames::kRefuse);
  if (protocol.kind(protocol.root()) != Pickle::Kind::kInt ||
      protocol.as_int(protocol.root()) != kLegacyProtocol)
    throw InputError(cat(where, ": has an unknown version of PyTorch's legacy format"));
  const Pickle system = next(UnknownNames::kRefuse);
  const Pickle::Id* little = system.find(system.root(), "little_endian");
  if (little == nullptr || system.kind(*little) != Pickle::Kind::kBool)
    throw InputError(cat(where, ": its system information is damaged"));
  if (!system.as_bool(*little))
    throw InputError(
        cat(where, ": holds big-endian numbers, which are not read; save it on a little-endian machine"));
  pickle = next(unknown);
  const Pickle keys = next(UnknownNames::kRefuse);
  if (keys.kind(keys.root()) != Pickle::Kind::kList)
    throw InputError(cat(where, ": its list of storages is damaged"));

  // The size of an element is known from the object only.
  std::map<std::string_view, const Pickle::Storage*> by_key;
  for (const Pickle::Storage& storage : pickle->storages()) {
    if (storage.key.empty()) continue;
    const auto [found, is_new] = by_key.emplace(storage.key, &storage);
    const Pickle::Storage& other = *found->second;
    if (other.total != storage.total || other.dtype != storage.dtype || other.untyped != storage.untyped)
      throw InputError(cat(where, ": a storage is there with two sizes or types; the file is damaged"));
  }
  std::map<std::string_view, std::span<const std::byte>> content;
  for (const Pickle::Id id : keys.items(keys.root())) {
    if (keys.kind(id) != Pickle::Kind::kText)
      throw InputError(cat(where, ": its list of storages is damaged"));
    const auto found = by_key.find(keys.as_text(id));
    // Under UnknownNames::kList storages of unknown types are only opaque values: their sizes are unknown,
    // and with them where the next one begins.
    if (found == by_key.end()) {
      if (!pickle->refused().empty()) break;
      throw InputError(cat(where, ": its list of storages is damaged"));
    }
    const Pickle::Storage& storage = *found->second;
    const uint64_t item = storage.untyped ? 1 : size_of(storage.dtype);
    if (rest.size() < 8) throw InputError(cat(where, ": the tensors are cut short"));
    const uint64_t count = load_u64(rest.data());
    rest = rest.subspan(8);
    if (count != storage.total)
      throw InputError(cat(where, ": a storage has ", count, " elements, its tensors need ", storage.total,
                           "; the file is damaged"));
    if (count > rest.size() / item)
      throw InputError(cat(where, ": a storage of ", count, " elements of ", item,
                           " bytes runs out of the file; it is cut short"));
    if (!content.emplace(storage.key, rest.first(static_cast<size_t>(count * item))).second)
      throw InputError(cat(where, ": its list of storages is damaged"));
    rest = rest.subspan(static_cast<size_t>(count * item));
  }
  for (const Pickle::Storage& storage : pickle->storages()) {
    Block& block = blocks.emplace_back();
    if (storage.key.empty()) {
      block.bytes = storage.content;
      continue;
    }
    const auto found = content.find(storage.key);
    if (found == content.end()) {
      if (!pickle->refused().empty()) continue;  // no bytes: storage() says so
      throw InputError(cat(where, ": a storage is missing; the file is damaged"));
    }
    const uint64_t item = storage.untyped ? 1 : size_of(storage.dtype);
    block.bytes = found->second.subspan(static_cast<size_t>(storage.begin * item),
                                        static_cast<size_t>(storage.count * item));
  }
}

bool is_pth(std::span<const std::byte> bytes) {
  return is_zip(bytes) || has_magic(bytes);
}

PthFile PthFile::open(const std::filesystem::path& path, UnknownNames unknown) {
  PthFile out;
  out.state_ = std::make_shared<State>();
  State& state = *out.state_;
  state.file = MappedFile::open(path);
  state.where = path.string();
  const auto bytes = state.file->bytes();
  if (is_zip(bytes)) {
    state.open_zip(unknown);
  } else if (has_magic(bytes)) {
    state.open_legacy(unknown);
  } else if (is_tar(bytes)) {
    throw InputError(cat(
        state.where, ": is a tar file as torch wrote before 0.1.10; load and save it with a newer torch"));
  } else {
    throw InputError(cat(state.where, bytes.empty() ? ": is empty; fetch or save it again"
                                                    : ": is no PyTorch file (neither a zip archive nor the "
                                                      "legacy magic number)"));
  }
  state.tree = pth_tree(*state.pickle, state.where);
  return out;
}

const std::string& PthFile::container() const {
  return state_->container;
}
const std::vector<PthTensor>& PthFile::tensors() const {
  return state_->tree.tensors;
}
const PthTensor* PthFile::find(std::string_view name) const {
  const PthTree& tree = state_->tree;
  const auto found = tree.index.find(name);
  return found == tree.index.end() ? nullptr : &tree.tensors[found->second];
}
const std::map<std::string, PthScalar>& PthFile::scalars() const {
  return state_->tree.scalars;
}
uint64_t PthFile::left_out() const {
  return state_->tree.left_out;
}
const std::vector<std::string>& PthFile::refused() const {
  return state_->pickle->refused();
}
const std::filesystem::path& PthFile::path() const {
  return state_->file->path();
}

std::span<const std::byte> PthFile::storage(const PthTensor& tensor) const {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  State::Block& block = state.blocks.at(tensor.storage);
  const Pickle::Storage& storage = state.pickle->storages()[tensor.storage];
  const uint64_t size = storage.count * (storage.untyped ? 1 : size_of(storage.dtype));
  if (block.bytes.data() == nullptr && block.entry != nullptr) {
    std::span<const std::byte> all;
    if (block.entry->deflated) {
      block.inflated = state.zip->read(*block.entry, block.entry->size);
      all = std::as_bytes(std::span(block.inflated));
    } else {
      state.zip->check_crc(*block.entry);
      all = state.zip->data(*block.entry);
    }
    block.bytes = all.subspan(static_cast<size_t>(block.skip), static_cast<size_t>(size));
  }
  if (block.bytes.size() != size)
    throw InputError(cat(state.where, ": ", printable(tensor.name),
                         ": its bytes cannot be found behind tensors of unknown types"));
  return block.bytes;
}

void PthFile::copy(const PthTensor& tensor, void* out) const {
  const size_t item = size_of(tensor.dtype), rank = tensor.shape.size();
  const uint64_t count = tensor.count();
  if (count == 0) return;
  const std::byte* from = storage(tensor).data() + tensor.offset * item;
  if (tensor.contiguous()) {
    std::memcpy(out, from, static_cast<size_t>(count) * item);
    return;
  }
  auto* to = static_cast<std::byte*>(out);
  std::vector<int64_t> index(rank, 0);
  uint64_t at = 0;  // in elements; unsigned, since the stride of an axis of size 1 may be anything
  for (uint64_t i = 0; i < count; ++i, to += item) {
    std::memcpy(to, from + at * item, item);
    for (size_t axis = rank; axis-- > 0;) {
      const auto stride = static_cast<uint64_t>(tensor.strides[axis]);
      at += stride;
      if (++index[axis] < tensor.shape[axis]) break;
      at -= stride * static_cast<uint64_t>(tensor.shape[axis]);
      index[axis] = 0;
    }
  }
}

uint64_t PthFile::copied_bytes() const {
  uint64_t total = 0;
  for (const PthTensor& tensor : tensors())
    if (!tensor.contiguous() && __builtin_add_overflow(total, tensor.count() * size_of(tensor.dtype), &total))
      return UINT64_MAX;
  return total;
}

}  // namespace adanat
