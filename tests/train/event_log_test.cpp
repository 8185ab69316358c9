#include "core/train/event_log.h"

#include <cmath>
#include <cstring>

#include "core/base/config.h"
#include "core/io/atomic_file.h"
#include "core/train/tfrecord.h"
#include "support/message_of.h"
#include "support/support.h"

namespace adanat {
namespace {
namespace fs = std::filesystem;
using testing::message_of;
using testing::TempDir;

// --- A reader of its own, written from the format's description ---

uint32_t unmask(uint32_t masked) {
  const uint32_t rotated = masked - 0xA282EAD8u;
  return (rotated >> 17) | (rotated << 15);
}

std::vector<std::string> read_records(const std::string& bytes) {
  std::vector<std::string> out;
  for (size_t at = 0; at < bytes.size();) {
    uint64_t length;
    uint32_t length_crc, data_crc;
    EXPECT_LE(at + 16, bytes.size());
    std::memcpy(&length, &bytes[at], 8);
    std::memcpy(&length_crc, &bytes[at + 8], 4);
    EXPECT_EQ(unmask(length_crc), crc32c(&bytes[at], 8));
    EXPECT_LE(at + 16 + length, bytes.size());
    out.push_back(bytes.substr(at + 12, length));
    std::memcpy(&data_crc, &bytes[at + 12 + length], 4);
    EXPECT_EQ(unmask(data_crc), crc32c(out.back().data(), length));
    at += 16 + length;
  }
  return out;
}

struct Part {
  uint64_t number = 0;  // varint and fixed-width values, the latter as bits
  std::string bytes;
};

std::multimap<int, Part> read_message(const std::string& text) {
  std::multimap<int, Part> out;
  size_t at = 0;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const uint8_t byte = uint8_t(text.at(at++));
      value |= uint64_t(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < text.size()) {
    const uint64_t tag = varint();
    Part part;
    switch (tag & 7) {
      case 0:
        part.number = varint();
        break;
      case 1:
        std::memcpy(&part.number, text.substr(at, 8).data(), 8), at += 8;
        break;
      case 5:
        std::memcpy(&part.number, text.substr(at, 4).data(), 4), at += 4;
        break;
      case 2: {
        const uint64_t length = varint();
        part.bytes = text.substr(at, length), at += length;
        break;
      }
      default:
        ADD_FAILURE() << "wire type " << (tag & 7);
    }
    out.emplace(int(tag >> 3), part);
  }
  return out;
}

Part only(const std::multimap<int, Part>& message, int field) {
  EXPECT_EQ(message.count(field), 1u) << "field " << field;
  const auto it = message.find(field);
  return it == message.end() ? Part{} : it->second;
}

template <class T>
T bits_as(uint64_t bits) {
  T out;
  std::memcpy(&out, &bits, sizeof(T));
  return out;
}

std::vector<fs::path> event_files(const fs::path& folder) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().filename().string().rfind("events.out.tfevents.", 0) == 0) out.push_back(entry.path());
  return out;
}

std::vector<Json> lines_of(const fs::path& file) {
  std::vector<Json> out;
  std::istringstream text(read_file(file));
  for (std::string line; std::getline(text, line);) out.push_back(Json::parse(line));
  return out;
}

TEST(Crc32c, KnownAnswers) {
  EXPECT_EQ(crc32c("123456789", 9), 0xE3069283u);
  EXPECT_EQ(crc32c("", 0), 0u);
  const std::string zeros(32, '\0'), ones(32, '\xff');  // RFC 3720 B.4
  EXPECT_EQ(crc32c(zeros.data(), 32), 0x8A9136AAu);
  EXPECT_EQ(crc32c(ones.data(), 32), 0x62A8AB43u);
}

TEST(EventLog, EventsCanBeReadBack) {
  TempDir dir;
  Image image{2, 1, {255, 0, 0, 0, 0, 255}};
  {
    EventLog log(dir.path(), 0);
    log.scalars(300, "train", {{"loss", 1.5}, {"rate", -2.0}});
    log.image(301, "samples", image);
    log.text(302, "config", "hello");
  }
  const auto files = event_files(dir.path());
  ASSERT_EQ(files.size(), 1u);
  const auto records = read_records(read_file(files[0]));
  ASSERT_EQ(records.size(), 5u);

  const auto first = read_message(records[0]);
  EXPECT_EQ(only(first, 3).bytes, "brain.Event:2");
  EXPECT_NEAR(bits_as<double>(only(first, 1).number), double(std::time(nullptr)), 60);
  EXPECT_EQ(only(read_message(only(read_message(records[1]), 7).bytes), 1).number, 1u) << "SessionLog START";

  const auto scalars = read_message(records[2]);
  EXPECT_EQ(only(scalars, 2).number, 300u);
  std::map<std::string, float> values;
  const auto summary = read_message(only(scalars, 5).bytes);
  for (auto [it, end] = summary.equal_range(1); it != end; ++it) {
    const auto value = read_message(it->second.bytes);
    values[only(value, 1).bytes] = bits_as<float>(only(value, 2).number);
  }
  EXPECT_EQ(values, (std::map<std::string, float>{{"train/loss", 1.5f}, {"train/rate", -2.0f}}));

  const auto shown = read_message(only(read_message(only(read_message(records[3]), 5).bytes), 1).bytes);
  EXPECT_EQ(only(shown, 1).bytes, "samples");
  const auto picture = read_message(only(shown, 4).bytes);
  EXPECT_EQ(only(picture, 1).number, 1u) << "height";
  EXPECT_EQ(only(picture, 2).number, 2u) << "width";
  const std::string png = only(picture, 4).bytes;
  EXPECT_EQ(decode_image(std::as_bytes(std::span(png)), "event").rgb, image.rgb);

  const auto text = read_message(only(read_message(only(read_message(records[4]), 5).bytes), 1).bytes);
  EXPECT_EQ(only(text, 1).bytes, "config");
  EXPECT_EQ(only(read_message(only(text, 8).bytes), 8).bytes, "hello");
  EXPECT_EQ(only(read_message(only(read_message(only(text, 9).bytes), 1).bytes), 1).bytes, "text");
}

TEST(EventLog, JsonLines) {
  TempDir dir;
  {
    EventLog log(dir.path(), 0);
    log.scalars(7, "train", {{"loss", 0.25}, {"bad", std::nan("")}, {"worse", INFINITY}});
    log.scalars(8, "evaluate", {{"accuracy", 1.0}});
  }
  const auto lines = lines_of(dir / "log.jsonl");
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["step"], 7);
  EXPECT_EQ(lines[0]["kind"], "train");
  EXPECT_EQ(lines[0]["loss"], 0.25);
  EXPECT_TRUE(lines[0]["bad"].is_null());
  EXPECT_TRUE(lines[0]["worse"].is_null());
  EXPECT_NEAR(lines[0]["time"].get<double>(), double(std::time(nullptr)), 60);
  EXPECT_EQ(lines[1]["kind"], "evaluate");
}

TEST(EventLog, ResumingDropsWhatCameAfterTheCheckpoint) {
  TempDir dir;
  {
    EventLog log(dir.path(), 0);
    for (int64_t step = 1; step <= 5; ++step) log.scalars(step, "train", {{"loss", double(step)}});
  }
  // A run that was killed in the middle of a line.
  std::ofstream(dir / "log.jsonl", std::ios::app) << "{\"step\":2,\"lo";
  {
    EventLog log(dir.path(), 4);
    log.scalars(4, "train", {{"loss", 40.0}});
  }
  std::vector<double> losses;
  for (const Json& line : lines_of(dir / "log.jsonl")) losses.push_back(line["loss"]);
  EXPECT_EQ(losses, (std::vector<double>{1, 2, 3, 40}));
  const auto files = event_files(dir.path());
  EXPECT_EQ(files.size(), 2u) << "the second run has a file of its own, also within one second";
  bool purges = false;
  for (const auto& file : files)
    for (const auto& record : read_records(read_file(file))) {
      const auto event = read_message(record);
      if (event.contains(7) && event.contains(2) && only(event, 2).number == 4) purges = true;
    }
  EXPECT_TRUE(purges)
      << "a SessionLog START at step 4 tells TensorBoard to drop what older files hold from there on";
}

TEST(EventLog, FolderThatCannotBeWritten) {
  TempDir dir;
  write_file_atomic(dir / "file", "x");
  const std::string text = message_of([&] { EventLog log(dir / "file", 0); });
  EXPECT_NE(text.find((dir / "file").string()), std::string::npos);
}

}  // namespace
}  // namespace adanat
