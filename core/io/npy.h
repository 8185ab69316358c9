// numpy's .npy and .npz files: statistics (mu, sigma), sample batches (arr_0), token caches. Free of torch.
//
// Layout of .npy: "\x93NUMPY", version (1.0, 2.0 or 3.0), header length (u16 or u32), a Python dict literal
// with the keys descr, fortran_order and shape, then the elements. .npz: a zip archive of such members named
// <array>.npy. Object arrays hold pickles and are refused; so are big-endian numbers, texts, dates and
// structures. Source: numpy lib/format.py (NEP 1).
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/dtype.h"
#include "core/io/safetensors.h"
#include "core/io/zip.h"

namespace adanat {

struct NpyHeader {
  DType dtype = DType::kF64;
  bool fortran_order = false;  // the first index moves fastest
  std::vector<int64_t> shape;  // every size >= 0; empty = a scalar
  uint64_t header_size = 0;    // bytes before the elements
  uint64_t count() const;      // number of elements
  uint64_t bytes() const;      // count() * size_of(dtype); fits 63 bits
};

// Reads a header from the first bytes of a file (all of it, or at least kMaxNpyHeader). InputError naming
// `where`.
inline constexpr size_t kMaxNpyHeader = 65536;
NpyHeader parse_npy_header(std::span<const std::byte> bytes, const std::string& where);

// A whole array in memory, always row-major (Fortran order is turned round while reading).
struct NpyArray {
  std::string where;  // "FILE: NAME" for messages
  DType dtype;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;

  size_t count() const { return bytes.size() / size_of(dtype); }
  // Every element converted; 64-bit integers above 2^53 round.
  std::vector<double> as_float64() const;
  // For integer dtypes and bool. InputError for others and for u64 values that do not fit.
  std::vector<int64_t> as_int64() const;
};

// An array read row by row (a row = one index of the first axis), for arrays larger than memory. Not
// thread-safe.
class NpyStream {
 public:
  DType dtype() const { return header_.dtype; }
  const std::vector<int64_t>& shape() const { return header_.shape; }
  int64_t rows() const { return header_.shape.empty() ? 1 : header_.shape[0]; }
  uint64_t row_bytes() const { return row_bytes_; }
  int64_t position() const { return position_; }  // rows read so far
  // The next `rows` rows, row-major, into rows * row_bytes() bytes. InputError: damaged data. RunError: fewer
  // are left.
  void read(void* out, int64_t rows);

 private:
  friend class NpzFile;
  friend NpyStream open_npy(const std::filesystem::path& path);
  NpyStream() = default;
  std::string where_;
  NpyHeader header_;
  uint64_t row_bytes_ = 0;
  int64_t position_ = 0;
  std::unique_ptr<ZipStream> member_;       // in an archive
  std::shared_ptr<const MappedFile> file_;  // a plain .npy
};

// An open .npz. Cheap to copy; const methods are safe from several threads.
class NpzFile {
 public:
  // Members that are no .npy are left out. InputError: no zip archive, damaged.
  static NpzFile open(const std::filesystem::path& path);
  explicit NpzFile(const std::filesystem::path& path) : NpzFile(open(path)) {}

  const std::vector<std::string>& names() const {
    return names_;
  }  // in the order of the archive, without ".npy"
  bool contains(std::string_view name) const;
  // dtype and shape alone: inflates no more than the header. InputError: no such array (names those there
  // are), damaged, the member is shorter or longer than its shape needs.
  NpyHeader header(std::string_view name) const;
  // The whole array, CRC checked. InputError as above, or more than max_bytes.
  NpyArray array(std::string_view name, uint64_t max_bytes = uint64_t{4} << 30) const;
  // InputError as above, and for Fortran order with more than one axis (rows do not follow one another
  // there).
  NpyStream stream(std::string_view name) const;
  // Checks the CRC of every member; InputError names the first that is wrong.
  void verify() const;
  const std::filesystem::path& path() const { return zip_.path(); }

 private:
  explicit NpzFile(ZipFile zip) : zip_(std::move(zip)) {}
  const ZipEntry& entry(std::string_view name) const;
  std::string where(std::string_view name) const;
  ZipFile zip_;
  std::vector<std::string> names_;
};

// A plain .npy file: whole, or row by row. Errors as for NpzFile.
NpyArray read_npy(const std::filesystem::path& path, uint64_t max_bytes = uint64_t{4} << 30);
NpyStream open_npy(const std::filesystem::path& path);

// The bytes of a version 1.0 header, as numpy writes it (padded so that the elements start at a multiple of
// 64).
std::string npy_header(DType dtype, const std::vector<int64_t>& shape);

// Writes arrays (row-major; TensorBytes: name, dtype, shape, bytes) in the order given under a temporary
// name, then renames. `deflate` compresses (numpy.savez_compressed). Equal content gives equal bytes.
// InputError: unwritable path. RunError: a size that contradicts the shape, BF16 (numpy has none), a name
// twice, disk full.
void write_npz(const std::filesystem::path& path, const std::vector<TensorBytes>& arrays,
               bool deflate = false);
void write_npy(const std::filesystem::path& path, const TensorBytes& array);

}  // namespace adanat
