#include "core/io/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "core/io/mapped_file.h"
#include "io/bytes.h"
#include "support/message_of.h"
#include "support/support.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::expect_input_error;
using testing::message_of;
using testing::TempDir;

size_t files_in(const fs::path& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

TEST(AtomicFileTest, WritesAndReplaces) {
  const TempDir dir;
  const auto path = dir / "a.bin";
  write_file_atomic(path, "first");
  EXPECT_EQ(read_file(path), "first");
  const std::string with_nul("x\0y", 3);
  write_file_atomic(path, with_nul);
  EXPECT_EQ(read_file(path), with_nul);
  EXPECT_EQ(files_in(dir.path()), 1u);
}

TEST(AtomicFileTest, WithoutCommitNothingChanges) {
  const TempDir dir;
  const auto path = dir / "a";
  write_file_atomic(path, "old");
  {
    AtomicFile file(path);
    file.write("half of the ne");
    EXPECT_EQ(files_in(dir.path()), 2u);
    EXPECT_EQ(read_file(path), "old");
  }
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(files_in(dir.path()), 1u);
}

TEST(AtomicFileTest, PermissionsFollowTheUmask) {
  const TempDir dir;
  const mode_t old = ::umask(0027);
  write_file_atomic(dir / "a", "x");
  ::umask(old);
  EXPECT_EQ(fs::status(dir / "a").permissions(), fs::perms(0640));
}

TEST(AtomicFileTest, UnwritablePathsAreInputErrors) {
  const TempDir dir;
  const std::string inside = (dir / "none" / "x").string();
  expect_input_error([&] { write_file_atomic(inside, ""); }, {inside.c_str(), "does not exist"});
  expect_input_error([&] { write_file_atomic(dir.path(), ""); }, {"folder"});
  expect_input_error([&] { write_file_atomic(dir.path() / "", ""); }, {"folder"});
  write_file_atomic(dir / "file", "");
  expect_input_error([&] { write_file_atomic(dir / "file/x", ""); }, {"Not a directory"});
  write_file_atomic(dir / std::string(250, 'n'), "a name near the limit of the file system");
  expect_input_error([&] { write_file_atomic(dir / std::string(300, 'n'), ""); }, {"cannot write"});
}

TEST(AtomicFileTest, DevicesStayDevices) {
  write_file_atomic("/dev/null", "gone");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST(AtomicFileTest, LinksStayLinks) {
  const TempDir dir;
  fs::create_directory(dir / "runs");
  fs::create_symlink("runs/7.json", dir / "latest");
  fs::create_symlink("latest", dir / "link");
  for (const char* text : {"new", "replaced"}) {  // the first time the link leads to nothing
    write_file_atomic(dir / "link", text);
    EXPECT_TRUE(fs::is_symlink(dir / "link") && fs::is_symlink(dir / "latest"));
    EXPECT_EQ(read_file(dir / "runs/7.json"), text);
  }
  fs::create_symlink("b", dir / "a");
  fs::create_symlink("a", dir / "b");
  expect_input_error([&] { write_file_atomic(dir / "a", ""); }, {"cannot write"});
}

// As `--trace /dev/stdout >> FILE`: at the place where the open file is.
TEST(AtomicFileTest, OpenFilesAreWrittenWhereTheyAre) {
  const TempDir dir;
  write_file_atomic(dir / "log", "before ");
  const int fd = ::open((dir / "log").c_str(), O_WRONLY | O_APPEND);
  fs::create_symlink(cat("/proc/self/fd/", fd), dir / "out");
  for (const fs::path& name : {dir / "out", fs::path(cat("/dev/fd/", fd))}) write_file_atomic(name, "new ");
  ::close(fd);
  EXPECT_TRUE(fs::is_symlink(dir / "out"));
  EXPECT_EQ(read_file(dir / "log"), "before new new ");
}

TEST(AtomicFileTest, FullDiskIsARunError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "skipped: no /dev/full";
  const std::string text = message_of<RunError>([&] { write_file_atomic("/dev/full", "x"); });
  EXPECT_NE(text.find("/dev/full: no space left on device"), std::string::npos) << text;
}

TEST(ReadFileTest, Limits) {
  const TempDir dir;
  write_file_atomic(dir / "a", "12345");
  EXPECT_EQ(read_file(dir / "a", 5), "12345");
  expect_input_error([&] { read_file(dir / "a", 4); }, {"longer than the 4 bytes"});
  expect_input_error([&] { read_file("/dev/zero", 100'000); }, {"longer"});
  expect_input_error([&] { read_file(dir / "none"); }, {"none", "No such file"});
  expect_input_error([&] { read_file(dir.path()); }, {"folder"});
  write_file_atomic(dir / "empty", "");
  EXPECT_EQ(read_file(dir / "empty", 0), "");
}

TEST(MappedFileTest, MapsAndRefuses) {
  const TempDir dir;
  write_file_atomic(dir / "a", "abc");
  const auto file = MappedFile::open(dir / "a");
  EXPECT_EQ(file->size(), 3u);
  EXPECT_EQ(file->data()[2], std::byte{'c'});
  // The pages are private: changing them does not change the file.
  const_cast<std::byte*>(file->data())[2] = std::byte{'x'};
  EXPECT_EQ(read_file(dir / "a"), "abc");
  write_file_atomic(dir / "empty", "");
  EXPECT_EQ(MappedFile::open(dir / "empty")->size(), 0u);
  expect_input_error([&] { MappedFile::open(dir / "none"); }, {"none"});
  expect_input_error([&] { MappedFile::open(dir.path()); }, {"folder"});
  expect_input_error([&] { MappedFile::open("/dev/null"); }, {"not a regular file"});
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  expect_input_error([&] { MappedFile::open(dir / "pipe"); }, {"not a regular file"});  // nobody waits for it
}

}  // namespace
}  // namespace adanat
