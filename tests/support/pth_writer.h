// PyTorch files as torch.save writes them, made without Python: dicts, lists, numbers, texts, tensors and an
// argparse.Namespace, in either container. Source: torch/serialization.py, pickle protocol 2.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/io/zip.h"
#include "core/nn/tensor_file.h"

namespace adanat::testing {

// A value of a pickle.
struct PthValue {
  enum class Kind { kNone, kBool, kInt, kFloat, kText, kTensor, kList, kDict, kNamespace } kind = Kind::kNone;
  int64_t integer = 0;
  double real = 0;
  std::string text{};
  at::Tensor tensor{};
  std::vector<std::pair<std::string, PthValue>> items{};  // kList: keys are ignored

  static PthValue of(bool value) { return {.kind = Kind::kBool, .integer = value}; }
  static PthValue of(int64_t value) { return {.kind = Kind::kInt, .integer = value}; }
  static PthValue of(double value) { return {.kind = Kind::kFloat, .real = value}; }
  static PthValue of(const char* value) { return of(std::string(value)); }
  static PthValue of(std::string value) { return {.kind = Kind::kText, .text = std::move(value)}; }
  static PthValue of(at::Tensor value) { return {.kind = Kind::kTensor, .tensor = value.contiguous()}; }
  using Items = std::vector<std::pair<std::string, PthValue>>;
  static PthValue dict(Items items) { return {.kind = Kind::kDict, .items = std::move(items)}; }
  static PthValue ns(Items items) { return {.kind = Kind::kNamespace, .items = std::move(items)}; }
  static PthValue list(const std::vector<std::string>& texts) {
    PthValue out{.kind = Kind::kList};
    for (const std::string& text : texts) out.items.emplace_back("", of(text));
    return out;
  }
  // An OrderedDict's worth of tensors, `prefix` in front of each name.
  static PthValue dict(const TensorMap& tensors, const std::string& prefix = "") {
    PthValue out{.kind = Kind::kDict};
    for (const auto& [name, tensor] : tensors) out.items.emplace_back(prefix + name, of(tensor));
    return out;
  }
};

class PthWriter {
 public:
  // Adds the value's pickle (without PROTO and STOP) and its storages.
  static std::string pickle(const PthValue& value, std::vector<at::Tensor>* storages, bool legacy) {
    PthWriter writer(storages, legacy);
    writer.add(value);
    return writer.out_;
  }

 private:
  PthWriter(std::vector<at::Tensor>* storages, bool legacy) : storages_(storages), legacy_(legacy) {}

  void global(const char* module, const char* name) {
    out_ += std::string("c") + module + "\n" + name + "\n";
  }
  template <class T>
  void raw(T value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void text(const std::string& value) { out_ += 'X', raw(uint32_t(value.size())), out_ += value; }
  void integer(int64_t value) {
    if (value == int32_t(value))
      out_ += 'J', raw(int32_t(value));
    else
      out_ += "\x8a\x08", raw(value);
  }
  static const char* storage_type(at::ScalarType type) {
    switch (type) {
      case at::kFloat:
        return "FloatStorage";
      case at::kHalf:
        return "HalfStorage";
      case at::kBFloat16:
        return "BFloat16Storage";
      case at::kDouble:
        return "DoubleStorage";
      case at::kLong:
        return "LongStorage";
      default:
        throw std::runtime_error("pth_writer: a type that the tests do not write");
    }
  }
  void tensor(const at::Tensor& value) {
    global("torch._utils", "_rebuild_tensor_v2");
    out_ += "((", text("storage"), global("torch", storage_type(value.scalar_type()));
    text(std::to_string(storages_->size())), text("cpu"), integer(value.numel());
    if (legacy_) out_ += 'N';  // no view
    out_ += "tQ", integer(0);
    out_ += '(';
    for (const int64_t size : value.sizes()) integer(size);
    out_ += "t(";
    for (const int64_t stride : value.strides()) integer(stride);
    out_ += "t\x89", global("collections", "OrderedDict"), out_ += ")RtR";
    storages_->push_back(value);
  }
  void items(const PthValue& value) {
    out_ += '(';
    for (const auto& [key, item] : value.items) text(key), add(item);
    out_ += 'u';
  }
  void add(const PthValue& value) {
    using Kind = PthValue::Kind;
    switch (value.kind) {
      case Kind::kNone:
        out_ += 'N';
        return;
      case Kind::kBool:
        out_ += value.integer != 0 ? '\x88' : '\x89';
        return;
      case Kind::kInt:
        return integer(value.integer);
      case Kind::kFloat: {
        uint64_t bits;
        std::memcpy(&bits, &value.real, sizeof bits);
        out_ += 'G', raw(__builtin_bswap64(bits));
        return;
      }
      case Kind::kText:
        return text(value.text);
      case Kind::kTensor:
        return tensor(value.tensor);
      case Kind::kList:
        out_ += "](";
        for (const auto& [key, item] : value.items) add(item);
        out_ += 'e';
        return;
      case Kind::kDict:
        global("collections", "OrderedDict"), out_ += ")R", items(value);
        return;
      case Kind::kNamespace:
        global("argparse", "Namespace"), out_ += ")\x81}", items(value), out_ += 'b';
        return;
    }
  }

  std::string out_;
  std::vector<at::Tensor>* storages_;
  bool legacy_;
};

inline std::span<const std::byte> tensor_bytes(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), size_t(tensor.nbytes())};
}

// The container of torch >= 1.6.
inline void write_pth(const std::filesystem::path& file, const PthValue& value) {
  std::vector<at::Tensor> storages;
  const std::string pickle = "\x80\x02" + PthWriter::pickle(value, &storages, false) + ".";
  ZipWriter zip(file);
  const auto add = [&](const std::string& name, std::span<const std::byte> bytes) {
    const std::span<const std::byte> pieces[] = {bytes};
    zip.add("archive/" + name, pieces, false);
  };
  const std::string order = "little", version = "3\n";
  add("data.pkl", std::as_bytes(std::span(pickle)));
  add("byteorder", std::as_bytes(std::span(order)));
  for (size_t i = 0; i < storages.size(); ++i) add("data/" + std::to_string(i), tensor_bytes(storages[i]));
  add("version", std::as_bytes(std::span(version)));
  zip.commit();
}

// The container before that: pickles in a row, the storages behind them.
inline void write_legacy_pth(const std::filesystem::path& file, const PthValue& value) {
  std::vector<at::Tensor> storages, none;
  const std::string object = PthWriter::pickle(value, &storages, true);
  PthValue keys{.kind = PthValue::Kind::kList};
  for (size_t i = 0; i < storages.size(); ++i) keys.items.emplace_back("", PthValue::of(std::to_string(i)));
  const PthValue system = PthValue::dict(
      {{"protocol_version", PthValue::of(int64_t{1001})}, {"little_endian", PthValue::of(true)}});
  const auto whole = [](const std::string& body) { return "\x80\x02" + body + "."; };
  AtomicFile out(file);
  out.write(whole(std::string("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")));
  out.write(whole(PthWriter::pickle(PthValue::of(int64_t{1001}), &none, true)));
  out.write(whole(PthWriter::pickle(system, &none, true)));
  out.write(whole(object));
  out.write(whole(PthWriter::pickle(keys, &none, true)));
  for (const at::Tensor& storage : storages) {
    const auto count = uint64_t(storage.numel());
    out.write(&count, sizeof count);
    out.write(tensor_bytes(storage).data(), tensor_bytes(storage).size());
  }
  out.commit();
}

}  // namespace adanat::testing
