// A folder that appears whole or not at all.
#pragma once
#include <filesystem>
#include <vector>

namespace adanat {

// Files are written into path(), a new folder beside the wanted one; commit() renames it. Destroyed without
// commit(), it removes the new folder with all in it, and the folders above that it had to make. Not
// thread-safe. InputError: something stands under the name already, or the folder cannot be made.
class AtomicFolder {
 public:
  explicit AtomicFolder(const std::filesystem::path& folder);
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;

  const std::filesystem::path& path() const { return temporary_; }
  // Once, at the end. InputError as above, should the name have been taken meanwhile.
  void commit();

 private:
  void refuse_existing() const;
  std::filesystem::path folder_, temporary_;
  std::vector<std::filesystem::path> made_;  // folders above, outermost first
};

}  // namespace adanat
