// safetensors files: reading by mapping, writing atomically. Free of torch: a tensor here is a name, a type,
// a shape and a range of bytes.
//
// Layout: u64 little-endian N | N bytes of JSON | data. The JSON maps each name to {"dtype", "shape",
// "data_offsets"}, and "__metadata__" to an object of strings. Row-major, little-endian.
//
// Source: huggingface/safetensors README and safetensors/src/tensor.rs.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/dtype.h"
#include "core/io/mapped_file.h"

namespace adanat {

struct TensorEntry {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;  // every size >= 0; empty = a scalar
  uint64_t begin, end;         // byte range [begin, end) counted from the start of the file
};

// An open file. Cheap to copy (one shared mapping), const methods are safe from several threads.
class SafetensorsFile {
 public:
  // Maps the file and checks the whole header before anything is believed: header length (at most 100 MB and
  // inside the file), JSON, known dtypes, no key twice, and that the tensors cover the data exactly: no
  // overlap, no hole, nothing left over, each range as long as its shape and type say. InputError names the
  // file, the key and both sides.
  static SafetensorsFile open(const std::filesystem::path& path);

  // In the order of their bytes in the file (empty tensors by name among equals).
  const std::vector<TensorEntry>& entries() const { return entries_; }
  // The "__metadata__" object; empty if there is none.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // Null if there is no such tensor.
  const TensorEntry* find(std::string_view name) const;
  // InputError naming the file and the key if there is no such tensor.
  const TensorEntry& at(std::string_view name) const;
  // First byte of an entry of this file. Writers usually align it to the element size; do not rely on it:
  // copy if not.
  const std::byte* data(const TensorEntry& entry) const;
  std::shared_ptr<const MappedFile> mapping() const { return file_; }
  const std::filesystem::path& path() const { return file_->path(); }

 private:
  std::shared_ptr<const MappedFile> file_;
  std::vector<TensorEntry> entries_;
  std::map<std::string, size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
};

// What a writer hands over: `size` bytes at `data`, contiguous and row-major; the pointer must live until the
// call returns.
struct TensorBytes {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  const void* data;
  size_t size;
};

// Writes the file under a temporary name in the same folder, fsync, rename: readers see the old file or the
// new one. Order: larger elements first, then by name, header padded to 8 bytes, so every tensor is aligned
// to its element size and equal content gives equal bytes. InputError: unwritable path. RunError: a size that
// contradicts the shape, a name twice or reserved, text that is not UTF-8, disk full.
void write_safetensors(const std::filesystem::path& path, std::vector<TensorBytes> tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace adanat
