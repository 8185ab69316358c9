#include "core/io/jpeg.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>  // jpeglib.h needs FILE
#include <cstring>

#include <jerror.h>
#include <jpeglib.h>

#include "core/base/error.h"

namespace adanat {
namespace {

// Each scan of a progressive file walks over the whole image again; honest files have about ten.
constexpr int kMaxScans = 200;

// libjpeg reports errors through callbacks that must not return. C frames cannot be unwound by an exception,
// so the callback jumps back into read_pixels, which owns nothing; this struct, owned by its caller, cleans
// up.
struct Decoder {
  jpeg_decompress_struct info{};
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  std::jmp_buf escape{};
  char message[JMSG_LENGTH_MAX] = "";
  bool ended_early = false;
  bool created = false;

  ~Decoder() {
    if (created) jpeg_destroy_decompress(&info);
  }
};

Decoder& decoder_of(j_common_ptr info) {
  return *static_cast<Decoder*>(info->client_data);
}

void on_error(j_common_ptr info) {
  Decoder& decoder = decoder_of(info);
  info->err->format_message(info, decoder.message);
  std::longjmp(decoder.escape, 1);
}

// Pillow is silent about damaged entropy data too; but it refuses files that end early, where libjpeg invents
// the rest.
void on_message(j_common_ptr info, int level) {
  if (level < 0 && info->err->msg_code == JWRN_JPEG_EOF) decoder_of(info).ended_early = true;
}

void on_progress(j_common_ptr info) {
  Decoder& decoder = decoder_of(info);
  if (decoder.info.input_scan_number <= kMaxScans) return;
  std::snprintf(decoder.message, sizeof decoder.message, "more than %d scans", kMaxScans);
  std::longjmp(decoder.escape, 1);
}

// Blocks of 8x8 values that a byte can stand for at the most. Huffman's code takes a bit for the mean of
// each; arithmetic code has no such bound, but nothing that is worth reading goes beyond this one.
constexpr uint64_t kHuffmanBlocksPerByte = 8, kArithmeticBlocksPerByte = 1024;

// Whether so many bytes can hold the image whose header has been read: libjpeg would invent what they lack.
bool can_hold(const jpeg_decompress_struct& info, size_t bytes) {
  uint64_t blocks = 0;  // of the component that has the most
  for (int i = 0; i < info.num_components; ++i)
    blocks =
        std::max(blocks, uint64_t{info.comp_info[i].width_in_blocks} * info.comp_info[i].height_in_blocks);
  return blocks <= bytes * (info.arith_code ? kArithmeticBlocksPerByte : kHuffmanBlocksPerByte);
}

enum class Outcome { kDone, kBroken, kTooLarge, kTooFewBytes };

// Fills image; channels is 1, 3 or 4 values per pixel as libjpeg gives them. No object with a destructor may
// live in this frame: on_error jumps over them.
Outcome read_pixels(Decoder& decoder, std::span<const std::byte> bytes, Image& image, int& channels) {
  jpeg_decompress_struct& info = decoder.info;
  info.err = jpeg_std_error(&decoder.errors);
  decoder.errors.error_exit = on_error;
  decoder.errors.emit_message = on_message;
  info.client_data = &decoder;
  if (setjmp(decoder.escape) != 0) return Outcome::kBroken;
  jpeg_create_decompress(&info);
  decoder.created = true;
  decoder.progress.progress_monitor = on_progress;
  info.progress = &decoder.progress;
  jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(bytes.data()),
               static_cast<unsigned long>(bytes.size()));
  jpeg_read_header(&info, TRUE);
  image.width = static_cast<int>(info.image_width);
  image.height = static_cast<int>(info.image_height);
  if (info.image_width > kMaxImageSide || info.image_height > kMaxImageSide ||
      int64_t{image.width} * image.height > kMaxImagePixels)
    return Outcome::kTooLarge;
  if (!can_hold(info, bytes.size())) return Outcome::kTooFewBytes;
  switch (info.jpeg_color_space) {
    case JCS_GRAYSCALE:
      info.out_color_space = JCS_GRAYSCALE;
      break;
    case JCS_CMYK:
    case JCS_YCCK:
      info.out_color_space = JCS_CMYK;
      break;
    default:
      info.out_color_space = JCS_RGB;
      break;
  }
  info.dct_method = JDCT_ISLOW;
  jpeg_start_decompress(&info);
  channels = info.output_components;
  const size_t row_size = static_cast<size_t>(image.width) * channels;
  image.rgb.resize(row_size * image.height);
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = image.rgb.data() + info.output_scanline * row_size;
    jpeg_read_scanlines(&info, &row, 1);
    if (decoder.ended_early) return Outcome::kBroken;
  }
  jpeg_finish_decompress(&info);
  return Outcome::kDone;
}

std::vector<uint8_t> grey_to_rgb(const std::vector<uint8_t>& grey) {
  std::vector<uint8_t> rgb(grey.size() * 3);
  for (size_t i = 0; i < grey.size(); ++i) std::memset(rgb.data() + i * 3, grey[i], 3);
  return rgb;
}

// Source: Pillow src/libImaging/Convert.c (cmyk2rgb) after its "CMYK;I" unpacker.
std::vector<uint8_t> inverted_cmyk_to_rgb(const std::vector<uint8_t>& cmyk) {
  std::vector<uint8_t> rgb(cmyk.size() / 4 * 3);
  for (size_t i = 0; i < cmyk.size() / 4; ++i) {
    const int white = cmyk[i * 4 + 3];  // 255 - black, as stored
    for (size_t c = 0; c < 3; ++c) {
      const int product = (255 - cmyk[i * 4 + c]) * white + 128;
      rgb[i * 3 + c] = static_cast<uint8_t>(white - (((product >> 8) + product) >> 8));
    }
  }
  return rgb;
}

}  // namespace

bool is_jpeg(std::span<const std::byte> bytes) {
  return bytes.size() >= 3 && bytes[0] == std::byte{0xff} && bytes[1] == std::byte{0xd8} &&
         bytes[2] == std::byte{0xff};
}

Image decode_jpeg(std::span<const std::byte> bytes, const std::string& where) {
  Decoder decoder;
  Image image;
  int channels = 0;
  switch (read_pixels(decoder, bytes, image, channels)) {
    case Outcome::kDone:
      break;
    case Outcome::kTooLarge:
      throw InputError(cat(where, ": an image of ", image.width, "x", image.height, " is over the limit of ",
                           kMaxImageSide, " per side and ", kMaxImagePixels, " pixels"));
    case Outcome::kTooFewBytes:
      throw InputError(cat(where, ": broken JPEG: ", bytes.size(), " bytes cannot hold an image of ",
                           image.width, "x", image.height));
    case Outcome::kBroken:
      throw InputError(
          cat(where, ": broken JPEG: ", decoder.ended_early ? "it ends early" : decoder.message));
  }
  if (channels == 1) image.rgb = grey_to_rgb(image.rgb);
  if (channels == 4) image.rgb = inverted_cmyk_to_rgb(image.rgb);
  return image;
}

}  // namespace adanat
