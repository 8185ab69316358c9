#include "core/io/atomic_folder.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

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

// The folder is not there until it is the one that was written, in one step; then it is nobody's to remove.
TEST(AtomicFolderTest, AppearsWhole) {
  const TempDir dir;
  {
    AtomicFolder folder(dir / "a/b/c");
    EXPECT_FALSE(fs::exists(dir / "a/b/c"));
    std::ofstream(folder.path() / "x") << "1";
    EXPECT_FALSE(fs::exists(dir / "a/b/c"));
    struct stat written {
    }, there{};
    ASSERT_EQ(::stat(folder.path().c_str(), &written), 0);
    folder.commit();
    EXPECT_TRUE(fs::exists(dir / "a/b/c/x"));
    ASSERT_EQ(::stat((dir / "a/b/c").c_str(), &there), 0);
    EXPECT_EQ(there.st_ino, written.st_ino);  // renamed: a copy would be there before its files are
    EXPECT_EQ(entries(dir / "a/b"), 1u);
    fs::rename(dir / "a/b/c", dir / "moved");
  }
  EXPECT_TRUE(fs::exists(dir / "moved/x"));
  EXPECT_TRUE(fs::exists(dir / "a/b"));
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
