// Labelled or captioned images, wherever they are stored: folders, tar archives, MNIST idx files, CIFAR
// binaries, tables, shards.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "core/io/image.h"

namespace adanat {

struct Sample {
  Image image;
  int64_t label;
};

// Items 0..size()-1 in a fixed order. Immutable after opening; every method may be called from several
// threads.
class ImageDataset {
 public:
  virtual ~ImageDataset() = default;
  virtual int64_t size() const = 0;  // >= 1
  // Class of an item, in [0, class_names().size()).
  virtual int64_t label(int64_t i) const = 0;
  // Decodes item i. InputError naming the file for one that is broken or no image.
  virtual Image image(int64_t i) const = 0;
  // Whether items have captions. caption(): UTF-8, not empty; InputError naming the item for one that has
  // none or a broken one.
  virtual bool has_captions() const { return false; }
  virtual std::string caption(int64_t) const { return {}; }
  // For messages: "DIR/cat/1.jpg", "x.tar.gz: cat/1.jpg", "t10k-images-idx3-ubyte.gz: image 17".
  virtual std::string item_name(int64_t i) const = 0;
  virtual const std::vector<std::string>& class_names() const = 0;
  // One line for logs and files: where, split, range, how many images and classes.
  virtual std::string describe() const = 0;
  Sample sample(int64_t i) const { return {image(i), label(i)}; }
};

// Opens PATH[#split][@begin:end]. A path that exists as it is written is taken as it is, whatever characters
// it holds.
//
// What PATH may be:
// - a folder with one folder per class; files of a class may lie deeper. Items are all files below the class
//   folders that are not hidden (so a file that is no image is met, reported and skipped by the loader).
//   Files beside the class folders are ignored. A folder without folders is one class, "all", of its files
//   with an image extension.
// - a .tar, .tar.gz or .tgz with the same tree inside. Folders that everything has in common above the class
//   folders are skipped. If the tree holds train/, test/ or val/ (or training/, testing/, valid/,
//   validation/), the split chooses: "train" (the default), "test" (val/ where there is no test/), "val". All
//   splits share one list of classes: the union of their class folders.
// - MNIST idx, plain or .gz: an images file (its labels file lies beside it, "images-idx3" ->
//   "labels-idx1"), or a folder with train-images-* and/or t10k-images-*. Grey is replicated. At least 10
//   classes, "0".."9".
// - CIFAR-10/100 binary: a folder (or tar) with data_batch_*.bin, test_batch.bin or train.bin, test.bin, or
//   one of these files. CIFAR-100 uses the fine labels. Names from batches.meta.txt / fine_label_names.txt
//   where present, else numbers.
// - an .npz of samples as the ADM evaluator reads it: arr_0 (N, H, W, 3) bytes, optionally arr_1 (N) labels.
//   Above 1 GiB it is read in order and never held whole; other orders are slow then.
// - a .tsv table of captioned images, one class "all": rows of caption and image file, in either order (told
//   by the names, or by a first row like "caption<TAB>image"; files are looked for from the table's folder),
//   or AdaNAT's four columns key, number, caption, base64 image (with the .lineidx of its maker, or without).
// - WebDataset shards: one .tar, a folder of them, or "x-{00000..00012}.tar". Neighbours of one name are a
//   sample: an image with .txt (its caption) or .cls (its class, an integer) or both. An image without .txt
//   counts as broken where others have one; where an image lacks a .cls, all are of one class.
// Classes are sorted by bytes, or by value where all names are integers. Items are in file order, for folders
// and archives sorted by name (bytes).
//
// split: the default where PATH has no "#split"; "" = train if there is one, else the only one.
// begin:end is half-open and applied to the items of the split; either may be left out ("@9000:", "@:9000").
// It does not change the list of classes. InputError, with what to do: nothing there, no images, unknown
// split, an empty range or one past the end, damaged files.
std::unique_ptr<ImageDataset> open_dataset(const std::filesystem::path& path, const std::string& split = "");

// The pieces of PATH[#split][@begin:end]. end -1 = to the end.
struct DatasetSpec {
  std::filesystem::path path;
  std::string split;
  int64_t begin = 0, end = -1;
};
DatasetSpec parse_dataset_spec(const std::string& text);

}  // namespace adanat
