#include "core/io/atomic_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include "core/base/error.h"

namespace adanat {
namespace fs = std::filesystem;

AtomicFolder::AtomicFolder(const fs::path& folder) : folder_(fs::absolute(folder).lexically_normal()) {
  if (!folder_.has_filename()) folder_ = folder_.parent_path();  // "models/x/"
  refuse_existing();
  std::error_code error;
  for (fs::path above = folder_.parent_path(); !fs::exists(above, error); above = above.parent_path())
    made_.insert(made_.begin(), above);
  error.clear();
  for (size_t i = 0; i < made_.size(); ++i) {
    fs::create_directory(made_[i], error);
    if (!error) continue;
    made_.resize(i);
    break;
  }
  if (!error) {
    temporary_ =
        folder_.parent_path() / cat(".", folder_.filename().string().substr(0, 200), ".tmp-", ::getpid());
    if (!fs::create_directory(temporary_, error) && !error)
      error = std::make_error_code(std::errc::file_exists);
  }
  if (!error) return;
  temporary_.clear();
  for (size_t i = made_.size(); i-- > 0;) fs::remove(made_[i]);
  throw InputError(cat(folder.string(), ": cannot make this folder: ", error.message()));
}

AtomicFolder::~AtomicFolder() {
  if (temporary_.empty()) return;
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
  for (size_t i = made_.size(); i-- > 0;) fs::remove(made_[i], ignored);
}

void AtomicFolder::refuse_existing() const {
  std::error_code ignored;
  if (fs::exists(fs::symlink_status(folder_, ignored)))
    throw InputError(cat(folder_.string(), ": exists already; remove it, or give another name"));
}

void AtomicFolder::commit() {
  refuse_existing();  // rename() would take the place of an empty folder
  std::error_code error;
  fs::rename(temporary_, folder_, error);
  if (error) throw InputError(cat(folder_.string(), ": cannot be put into place: ", error.message()));
  temporary_.clear();
  const int above = ::open(folder_.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (above < 0) return;
  (void)::fsync(above);  // some file systems refuse this, which is no failure of ours
  ::close(above);
}

}  // namespace adanat
