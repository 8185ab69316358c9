// Builds tar archives in memory.
#pragma once
#include <zlib.h>

#include <cstdio>
#include <cstring>
#include <string>

namespace adanat::testing {

inline std::string tar_header(const std::string& name, uint64_t size, char type,
                              const std::string& prefix = "") {
  std::string header(512, '\0');
  const auto put = [&](size_t at, const std::string& text) { header.replace(at, text.size(), text); };
  char number[24];
  put(0, name.substr(0, 100));
  put(100, "0000644");
  std::snprintf(number, sizeof number, "%011llo", static_cast<unsigned long long>(size));
  put(124, number);
  put(136, "00000000000");
  header[156] = type;
  put(257, std::string("ustar\0"
                       "00",
                       8));
  put(345, prefix);
  put(148, "        ");
  unsigned sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  std::snprintf(number, sizeof number, "%06o", sum);
  put(148, std::string(number, 6) + '\0' + ' ');
  return header;
}

inline std::string tar_entry(const std::string& name, const std::string& body, char type = '0',
                             const std::string& prefix = "") {
  std::string out = tar_header(name, body.size(), type, prefix) + body;
  out.append((512 - out.size() % 512) % 512, '\0');
  return out;
}

inline std::string tar_end() {
  return std::string(1024, '\0');
}

inline std::string gzip(const std::string& bytes, int level = 6) {
  z_stream stream{};
  deflateInit2(&stream, level, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, bytes.size()) + 32, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

}  // namespace adanat::testing
