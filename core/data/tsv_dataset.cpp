// Captioned images in a table: CC3M's TSV files in their two forms.
#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstring>
#include <utility>

#include "core/base/error.h"
#include "core/base/text.h"
#include "core/data/base64.h"
#include "core/data/dataset_kinds.h"
#include "core/io/mapped_file.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;

// Where a row has its parts. bytes: base64 of the image's file; -1: the image lies in a file of its own.
struct Columns {
  size_t count;
  int image, caption, bytes;
};

std::string_view strip(std::string_view text) {
  const auto space = [](char c) { return c == ' ' || c == '\r' || c == '\t'; };
  while (!text.empty() && space(text.front())) text.remove_prefix(1);
  while (!text.empty() && space(text.back())) text.remove_suffix(1);
  return text;
}

std::vector<std::string_view> split_row(std::string_view row) {
  std::vector<std::string_view> out;
  while (true) {
    const size_t tab = row.find('\t');
    out.push_back(strip(row.substr(0, tab)));
    if (tab == std::string_view::npos || out.size() > 8) return out;
    row.remove_prefix(tab + 1);
  }
}

bool is_address(std::string_view text) {
  return text.starts_with("http://") || text.starts_with("https://");
}

// -1: the name of neither column.
int image_heading(std::string_view name) {
  std::string small(name);
  for (char& c : small) c = char(std::tolower(static_cast<unsigned char>(c)));
  for (const char* known : {"image", "path", "file", "filepath", "filename", "image_path", "url"})
    if (small == known) return 1;
  for (const char* known : {"caption", "title", "text"})
    if (small == known) return 0;
  return -1;
}

class TsvDataset : public ImageDataset {
 public:
  explicit TsvDataset(const fs::path& path) : path_(path), file_(MappedFile::open(path)) {
    index_rows();
    find_columns();
    if (rows_.empty()) throw InputError(cat(path_.string(), ": holds no rows"));
  }

  int64_t size() const override { return int64_t(rows_.size()); }
  int64_t label(int64_t) const override { return 0; }
  bool has_captions() const override { return true; }
  Image image(int64_t i) const override {
    const auto fields = row(i);
    if (columns_.bytes >= 0) {
      const auto bytes = decode_base64(fields[size_t(columns_.bytes)]);
      if (!bytes) throw InputError(cat(item_name(i), ": the image is no base64"));
      return decode_image(std::as_bytes(std::span(*bytes)), item_name(i));
    }
    const std::string_view name = fields[size_t(columns_.image)];
    if (name.empty() || name.find('\0') != std::string_view::npos)
      throw InputError(cat(item_name(i), ": names no image"));
    return read_image(path_.parent_path() / fs::path(name));
  }
  std::string caption(int64_t i) const override {
    const std::string_view text = row(i)[size_t(columns_.caption)];
    if (text.empty()) throw InputError(cat(item_name(i), ": has no caption"));
    if (!is_utf8(text)) throw InputError(cat(item_name(i), ": its caption is not valid UTF-8"));
    return std::string(text);
  }
  std::string item_name(int64_t i) const override {
    return cat(path_.string(), ": row ", i + 1 + int64_t(has_heading_));
  }
  const std::vector<std::string>& class_names() const override { return classes_; }
  std::string describe() const override { return cat(path_.string(), ": ", size(), " captioned images"); }

 private:
  std::string_view text() const { return {reinterpret_cast<const char*>(file_->data()), file_->size()}; }

  // Starts of the rows: from the index file of its makers, which spares reading all of a large table, or by
  // looking for the line breaks. Empty rows do not count.
  void index_rows() {
    fs::path index = path_;
    index.replace_extension(".lineidx");
    if (fs::is_regular_file(index)) return read_index(index);
    const std::string_view all = text();
    for (size_t at = 0; at < all.size();) {
      const size_t end = std::min(all.find('\n', at), all.size());
      if (!strip(all.substr(at, end - at)).empty()) rows_.push_back(at);
      at = end + 1;
    }
  }
  void read_index(const fs::path& index) {
    const auto mapped = MappedFile::open(index);
    std::string_view lines(reinterpret_cast<const char*>(mapped->data()), mapped->size());
    const std::string_view all = text();
    while (!lines.empty()) {
      const size_t end = std::min(lines.find('\n'), lines.size());
      const std::string_view line = strip(lines.substr(0, end));
      lines.remove_prefix(std::min(end + 1, lines.size()));
      if (line.empty()) continue;
      uint64_t at = 0;
      const auto [last, code] = std::from_chars(line.data(), line.data() + line.size(), at);
      const bool number = code == std::errc() && last == line.data() + line.size();
      if (!number || at >= all.size() || (at > 0 && all[at - 1] != '\n') ||
          (!rows_.empty() && at <= rows_.back()))
        throw InputError(cat(index.string(), ": line ", rows_.size() + 1, " (\"", printable(line),
                             "\") is not where a row of ", path_.string(),
                             " begins; the index belongs to another file, remove it"));
      rows_.push_back(at);
    }
  }

  std::string_view line(size_t i) const {
    const std::string_view rest = text().substr(rows_[i]);
    return rest.substr(0, rest.find('\n'));
  }

  // The form of the table, from a heading or from what the first rows hold.
  void find_columns() {
    if (rows_.empty()) return;
    const size_t seen = std::min<size_t>(rows_.size(), 100);
    size_t of_two = 0, of_four = 0;  // any row may be a broken one
    for (size_t i = 0; i < seen; ++i) {
      const size_t fields = split_row(line(i)).size();
      of_two += fields == 2, of_four += fields == 4;
    }
    const auto first = split_row(line(0));
    if (first.size() == 2 && image_heading(first[0]) >= 0 &&
        image_heading(first[1]) == 1 - image_heading(first[0])) {
      const int image = image_heading(first[0]) == 1 ? 0 : 1;
      columns_ = {2, image, 1 - image, -1};
      has_heading_ = true;
      rows_.erase(rows_.begin());
    } else if (of_four > of_two || (of_four == of_two && first.size() == 4)) {
      columns_ = {4, 0, 2, 3};
    } else {
      size_t left = 0, right = 0;
      for (size_t i = 0; i < seen; ++i) {
        const auto fields = split_row(line(i));
        if (fields.size() != 2) continue;
        left += looks_like_image(fields[0]), right += looks_like_image(fields[1]);
      }
      if (left == right)
        throw InputError(
            cat(path_.string(), ": cannot tell which column names the images; rows must be caption<TAB>",
                "image or image<TAB>caption (a first row \"caption<TAB>image\" says it), or the four "
                "columns key, number, caption, base64 image"));
      columns_ = {2, left > right ? 0 : 1, left > right ? 1 : 0, -1};
    }
    if (columns_.bytes < 0 && !rows_.empty())
      if (const auto fields = split_row(line(0));
          fields.size() == 2 && is_address(fields[size_t(columns_.image)]))
        throw InputError(cat(path_.string(),
                             ": its images are web addresses; fetch them first, and give the shards "
                             "or files that they are kept in"));
  }
  bool looks_like_image(std::string_view field) const {
    std::error_code ignored;
    return is_address(field) || has_image_name(field) ||
           (field.size() < 1000 && field.find('\0') == std::string_view::npos && !field.empty() &&
            fs::is_regular_file(path_.parent_path() / fs::path(field), ignored));
  }

  std::vector<std::string_view> row(int64_t i) const {
    auto fields = split_row(line(size_t(i)));
    if (fields.size() != columns_.count)
      throw InputError(cat(item_name(i), ": has ", fields.size(), " columns, not ", columns_.count));
    return fields;
  }

  fs::path path_;
  std::shared_ptr<const MappedFile> file_;
  std::vector<uint64_t> rows_;  // where each begins
  Columns columns_{};
  bool has_heading_ = false;
  std::vector<std::string> classes_ = {"all"};
};

}  // namespace

std::unique_ptr<ImageDataset> try_open_tsv(const fs::path& path, const std::string& split) {
  if (path.extension() != ".tsv") return nullptr;
  if (!split.empty())
    throw InputError(cat(path.string(), ": has no split \"", split, "\": a table has none"));
  return std::make_unique<TsvDataset>(path);
}

}  // namespace adanat
