// The kinds of datasets behind open_dataset; use that.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/data/dataset.h"
#include "core/io/tar.h"

namespace adanat {

// Files that are found by a relative name with '/' between its parts: those of a folder or those inside an
// archive. Immutable and thread-safe.
class FileSource {
 public:
  virtual ~FileSource() = default;
  // Sorted by bytes.
  const std::vector<std::string>& names() const { return names_; }
  // The bytes of names()[i] and what keeps them alive.
  struct Bytes {
    std::shared_ptr<const void> owner;
    std::span<const std::byte> bytes;
  };
  virtual Bytes read(size_t i) const = 0;
  virtual std::string display_name(size_t i) const = 0;
  virtual std::string where() const = 0;

 protected:
  std::vector<std::string> names_;
};

// Hidden files and folders (".x", "__MACOSX") are left out; links are followed.
std::shared_ptr<const FileSource> open_folder(const std::filesystem::path& folder);
// `archive`: what stands at `path`, opened.
std::shared_ptr<const FileSource> open_archive(const std::filesystem::path& path,
                                               std::shared_ptr<const TarArchive> archive);

// Each opens one split ("" = the default) of its kind. The functions that can see from the names that it is
// not their kind return null then; everything else that is wrong is an InputError.
std::unique_ptr<ImageDataset> open_tree(std::shared_ptr<const FileSource> files, const std::string& split);
std::unique_ptr<ImageDataset> try_open_cifar(const std::shared_ptr<const FileSource>& files,
                                             const std::string& split);
std::unique_ptr<ImageDataset> try_open_cifar_file(const std::filesystem::path& file,
                                                  const std::string& split);
std::unique_ptr<ImageDataset> try_open_mnist(const std::filesystem::path& path, const std::string& split);
std::unique_ptr<ImageDataset> try_open_npz(const std::filesystem::path& path, const std::string& split);
std::unique_ptr<ImageDataset> try_open_tsv(const std::filesystem::path& path, const std::string& split);
// One archive; a folder of them, or a range of files (then `path` does not exist).
std::unique_ptr<ImageDataset> try_open_shard(const std::filesystem::path& path,
                                             std::shared_ptr<const TarArchive> archive,
                                             const std::string& split);
std::unique_ptr<ImageDataset> try_open_shards(const std::filesystem::path& path, const std::string& split);

// "train", "test" or "val" for the usual names of their folders, else "".
std::string_view split_of_folder(std::string_view name);
// "jpeg" for "a/cat.JPEG"; empty where there is none.
std::string extension_of(std::string_view name);
// True for "cat.JPEG" and the like, by the end of the name; includes formats that are not read (webp, tiff),
// so that such a file is reported and not overlooked.
bool has_image_name(std::string_view name);

}  // namespace adanat
