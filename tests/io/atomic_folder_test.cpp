#include "core/io/atomic_folder.h"

#include <gtest/gtest.h>

#include <fstream>

#include "core/base/error.h"
#include "support/support.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::TempDir;

size_t entries(const fs::path& folder) {
  size_t count = 0;
  for (const auto& entry : fs::directory_iterator(folder)) count += entry.exists();
  return count;
}

TEST(AtomicFolderTest, AppearsWhole) {
  const TempDir dir;
  {
    AtomicFolder folder(dir / "a/b/c");
    EXPECT_FALSE(fs::exists(dir / "a/b/c"));
    std::ofstream(folder.path() / "x") << "1";
    folder.commit();
    EXPECT_TRUE(fs::exists(dir / "a/b/c/x"));
  }
  EXPECT_TRUE(fs::exists(dir / "a/b/c/x"));
  EXPECT_EQ(entries(dir / "a/b"), 1u);
}

TEST(AtomicFolderTest, DisappearsWithAllItMade) {
  const TempDir dir;
  fs::create_directory(dir / "a");
  {
    AtomicFolder folder(dir / "a/b/c/");
    std::ofstream(folder.path() / "x") << "1";
    EXPECT_EQ(folder.path().parent_path(), dir / "a/b");
  }
  EXPECT_EQ(entries(dir / "a"), 0u);
}

TEST(AtomicFolderTest, TakesNoName) {
  const TempDir dir;
  fs::create_directory(dir / "empty");
  std::ofstream(dir / "file") << "1";
  fs::create_symlink("nowhere", dir / "link");
  for (const char* name : {"empty", "empty/", "file", "link", "file/x", "file/x/y"})
    EXPECT_THROW(AtomicFolder{dir / name}, InputError) << name;
  EXPECT_EQ(entries(dir.path()), 2u);  // the link leads nowhere
  AtomicFolder folder(dir / "late");
  fs::create_directory(dir / "late");
  EXPECT_THROW(folder.commit(), InputError);
}

}  // namespace
}  // namespace adanat
