#include "core/train/event_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>

#include "core/base/config.h"
#include "core/io/atomic_file.h"
#include "core/train/tfrecord.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

static_assert(std::endian::native == std::endian::little,
              "fixed-width fields are written as they lie in memory");

// --- CRC-32C (Castagnoli), and the mask that TFRecord puts over it ---

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0x82F63B78u : 0u);
    table[i] = value;
  }
  return table;
}

// --- The four wire types of protobuf that are needed; field numbers from tensorflow's event.proto and
// summary.proto ---

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(char(value | 0x80));
  out.push_back(char(value));
}

void put_int(std::string& out, int field, int64_t value) {
  put_varint(out, uint64_t(field) << 3);
  put_varint(out, uint64_t(value));
}

template <class T>  // float or double
void put_fixed(std::string& out, int field, T value) {
  put_varint(out, uint64_t(field) << 3 | (sizeof(T) == 8 ? 1 : 5));
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

void put_bytes(std::string& out, int field, const std::string& bytes) {
  put_varint(out, uint64_t(field) << 3 | 2);
  put_varint(out, bytes.size());
  out += bytes;
}

double unix_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; SessionLog
// session_log = 7; }
std::string event(double time, int64_t step, int field, const std::string& payload) {
  std::string out;
  put_fixed(out, 1, time);
  if (step != 0) put_int(out, 2, step);
  put_bytes(out, field, payload);
  return out;
}

std::string host_name() {
  char name[256] = "localhost";
  if (::gethostname(name, sizeof name - 1) != 0) std::strcpy(name, "localhost");
  std::string out = name;
  for (char& c : out)
    if (c == '/' || c == '\0') c = '_';
  return out;
}

// An append-only file whose errors name it.
class Appender {
 public:
  void open(const fs::path& path, int extra_flags) {
    path_ = path;
    fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | extra_flags, 0666);
  }
  bool is_open() const { return fd_ >= 0; }
  ~Appender() {
    if (fd_ >= 0) ::close(fd_);
  }
  void add(const std::string& bytes) { pending_ += bytes; }
  void flush() {
    size_t done = 0;
    while (done < pending_.size()) {
      const ssize_t written = ::write(fd_, pending_.data() + done, pending_.size() - done);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) {
        const int error = errno;
        pending_.clear();  // the destructor must not try again
        throw RunError(cat(path_.string(), error == ENOSPC
                                               ? ": no space left on device; free some space and resume"
                                               : cat(": cannot write: ", std::strerror(error))));
      }
      done += size_t(written);
    }
    pending_.clear();
  }

 private:
  fs::path path_;
  int fd_ = -1;
  std::string pending_;
};

// Keeps the lines whose step is below first_step. A line that is no such object (the last one of a run that
// was killed in the middle of it) goes too.
void truncate_log(const fs::path& path, int64_t first_step) {
  const std::string text = read_file(path);
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    const Json value = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (value.is_object() && value.contains("step") && value["step"].is_number_integer() &&
        value["step"].get<int64_t>() < first_step)
      kept += line + "\n";
    begin = end + 1;
  }
  if (kept != text) write_file_atomic(path, kept);
}

}  // namespace

uint32_t crc32c(const void* data, size_t size) {
  static constexpr std::array<uint32_t, 256> kTable = make_crc_table();
  uint32_t crc = ~0u;
  for (const auto* p = static_cast<const uint8_t*>(data); size > 0; --size, ++p)
    crc = (crc >> 8) ^ kTable[(crc ^ *p) & 0xFF];
  return ~crc;
}

// Record: u64 length, u32 masked CRC of the length, the bytes, u32 masked CRC of the bytes.
// Source: tensorflow/core/lib/io/record_writer.cc.
std::string tfrecord(const std::string& bytes) {
  const auto masked = [](uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u; };
  const uint64_t length = bytes.size();
  std::string out(12, '\0');
  std::memcpy(out.data(), &length, 8);
  const uint32_t length_crc = masked(crc32c(&length, 8)),
                 data_crc = masked(crc32c(bytes.data(), bytes.size()));
  std::memcpy(out.data() + 8, &length_crc, 4);
  out += bytes;
  out.append(reinterpret_cast<const char*>(&data_crc), 4);
  return out;
}

struct EventLog::State {
  Appender lines, events;

  void summary(double time, int64_t step, const std::string& values) {
    events.add(tfrecord(event(time, step, 5, values)));
  }
};

EventLog::EventLog(const fs::path& folder, int64_t first_step) : state_(std::make_unique<State>()) {
  std::error_code error;
  fs::create_directories(folder, error);
  const fs::path log = folder / "log.jsonl";
  if (fs::exists(log)) truncate_log(log, first_step);
  state_->lines.open(log, 0);
  if (!state_->lines.is_open()) throw InputError(cat(log.string(), ": cannot write: ", std::strerror(errno)));

  const double now = unix_seconds();
  const std::string base = cat("events.out.tfevents.", int64_t(now), ".", host_name());
  // Two runs begun within one second must not share a file.
  for (int attempt = 0; !state_->events.is_open(); ++attempt) {
    const fs::path path = folder / (attempt == 0 ? base : cat(base, ".", attempt));
    state_->events.open(path, O_EXCL);
    if (!state_->events.is_open() && errno != EEXIST)
      throw InputError(cat(path.string(), ": cannot write: ", std::strerror(errno)));
  }
  state_->events.add(tfrecord(event(now, 0, 3, "brain.Event:2")));
  // SessionLog.START: TensorBoard drops what older files hold from this step on.
  std::string start;
  put_int(start, 1, 1);
  state_->events.add(tfrecord(event(now, first_step, 7, start)));
  flush();
}

EventLog::~EventLog() {
  try {
    flush();
  } catch (const Error&) {
    // The run is ending with an error of its own, or said already that the disk is full.
  }
}

// Summary { repeated Value value = 1; }  Value { string tag = 1; float simple_value = 2; Image image = 4;
//   TensorProto tensor = 8; SummaryMetadata metadata = 9; }
void EventLog::scalars(int64_t step, const std::string& kind, const Scalars& values) {
  const double time = unix_seconds();
  Json line = {{"step", step}, {"time", time}, {"kind", kind}};
  std::string summary;
  for (const auto& [name, number] : values) {
    line[name] = std::isfinite(number) ? Json(number) : Json(nullptr);
    std::string value;
    put_bytes(value, 1, kind + "/" + name);
    put_fixed(value, 2, float(number));
    put_bytes(summary, 1, value);
  }
  state_->lines.add(line.dump() + "\n");
  state_->summary(time, step, summary);
}

// Image { int32 height = 1; int32 width = 2; int32 colorspace = 3 (3 = RGB); bytes encoded_image_string = 4;
// }
void EventLog::image(int64_t step, const std::string& tag, const Image& picture) {
  std::string image, value, summary;
  put_int(image, 1, picture.height);
  put_int(image, 2, picture.width);
  put_int(image, 3, 3);
  put_bytes(image, 4, encode_png(picture));
  put_bytes(value, 1, tag);
  put_bytes(value, 4, image);
  put_bytes(summary, 1, value);
  state_->summary(unix_seconds(), step, summary);
}

// Text is a one-element string tensor (dtype 7) of the plugin "text".
void EventLog::text(int64_t step, const std::string& tag, const std::string& text) {
  std::string dimension, shape, tensor, plugin, metadata, value, summary;
  put_int(dimension, 1, 1);
  put_bytes(shape, 2, dimension);
  put_int(tensor, 1, 7);
  put_bytes(tensor, 2, shape);
  put_bytes(tensor, 8, text);
  put_bytes(plugin, 1, "text");
  put_bytes(metadata, 1, plugin);
  put_bytes(value, 1, tag);
  put_bytes(value, 8, tensor);
  put_bytes(value, 9, metadata);
  put_bytes(summary, 1, value);
  state_->summary(unix_seconds(), step, summary);
}

void EventLog::flush() {
  state_->lines.flush();
  state_->events.flush();
}

}  // namespace adanat
