#include "core/io/image.h"

#include <cstdio>  // jpeglib.h needs FILE
#include <cstdlib>

#include <jpeglib.h>
#include <zlib.h>

#include "core/io/atomic_file.h"
#include "core/io/png.h"
#include "io/bytes.h"
#include "io/jpeg_samples.h"
#include "support/support.h"

namespace adanat {
namespace {

using testing::as_bytes;
using testing::Damage;
using testing::expect_input_error;
using testing::from_hex;
using testing::test_image;

void put_u32(std::string& bytes, size_t at, uint32_t value) {
  for (int i = 0; i < 4; ++i)
    bytes[at + static_cast<size_t>(i)] = static_cast<char>(value >> (24 - 8 * i) & 0xff);
}

std::string png_chunk(const std::string& type, const std::string& data) {
  std::string out(4, '\0');
  put_u32(out, 0, static_cast<uint32_t>(data.size()));
  out += type + data + std::string(4, '\0');
  put_u32(out, out.size() - 4,
          static_cast<uint32_t>(
              crc32(0, reinterpret_cast<const Bytef*>(out.data()) + 4, static_cast<uInt>(4 + data.size()))));
  return out;
}

constexpr size_t kPngHead = 8 + 25;  // signature and IHDR

// Decodes hostile bytes: an InputError of one line, or an image that is consistent.
bool decodes(const std::string& bytes) {
  try {
    const Image image = decode_image(as_bytes(bytes), "hostile");
    EXPECT_EQ(image.rgb.size(), static_cast<size_t>(image.width) * image.height * 3);
    return true;
  } catch (const InputError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    EXPECT_EQ(std::string(error.what()).rfind("hostile: ", 0), 0u) << error.what();
    return false;
  }
}

// A square of one grey in as few bytes as libjpeg can.
std::string grey_jpeg(unsigned side, bool progressive) {
  jpeg_compress_struct info{};
  jpeg_error_mgr errors{};
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* made = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &made, &size);
  info.image_width = info.image_height = side;
  info.input_components = 1, info.in_color_space = JCS_GRAYSCALE;
  jpeg_set_defaults(&info);
  info.optimize_coding = TRUE;
  if (progressive) jpeg_simple_progression(&info);
  jpeg_start_compress(&info, TRUE);
  std::vector<JSAMPLE> values(side, 128);
  for (JSAMPROW row = values.data(); info.next_scanline < side;) jpeg_write_scanlines(&info, &row, 1);
  jpeg_finish_compress(&info);
  const std::string bytes(reinterpret_cast<const char*>(made), size);
  jpeg_destroy_compress(&info);
  std::free(made);
  return bytes;
}

TEST(JpegTest, PixelsEqualPillow) {
  for (const auto& sample : testing::kJpegSamples) {
    const Image image = decode_image(as_bytes(from_hex(sample.hex)), sample.name);
    EXPECT_EQ(image.width, 21) << sample.name;
    EXPECT_EQ(image.height, 17) << sample.name;
    EXPECT_EQ(crc32_z(0, image.rgb.data(), image.rgb.size()), sample.rgb_crc) << sample.name;
  }
}

TEST(JpegTest, TruncatedAndDamaged) {
  Damage damage(3);
  for (const auto& sample : testing::kJpegSamples) {
    const std::string bytes = from_hex(sample.hex);
    // The last few bytes may be missing without loss: the entropy decoder has read its pixels.
    for (size_t size = 0; size < bytes.size(); ++size) {
      const bool ok = decodes(bytes.substr(0, size));
      if (size + 16 < bytes.size()) {
        EXPECT_FALSE(ok) << sample.name << " cut to " << size;
      }
    }
    for (int i = 0; i < 3000; ++i) decodes(damage.apply(bytes));
  }
}

TEST(JpegTest, SizeIsCheckedBeforeMemoryIsAsked) {
  std::string bytes = from_hex(testing::kJpegSamples[2].hex);
  const size_t frame = bytes.find("\xff\xc0");
  ASSERT_NE(frame, std::string::npos);
  bytes.replace(frame + 5, 4, "\x40\x01\x40\x01");
  expect_input_error([&] { decode_image(as_bytes(bytes), "big.jpg"); }, {"big.jpg", "16385x16385", "limit"});
}

// A header that promises more than its bytes can say is turned away; the emptiest image there can be is read.
TEST(JpegTest, SizeIsHeldAgainstTheFile) {
  std::string bytes = from_hex(testing::kJpegSamples[2].hex);
  const size_t frame = bytes.find("\xff\xc0");
  ASSERT_NE(frame, std::string::npos);
  bytes.replace(frame + 5, 4, std::string("\x20\x00\x20\x00", 4));
  const std::string said = cat(bytes.size(), " bytes cannot hold an image of 8192x8192");
  expect_input_error([&] { decode_image(as_bytes(bytes), "f.jpg"); }, {"f.jpg", said.c_str()});

  for (const bool progressive : {false, true}) {
    const std::string grey = grey_jpeg(4096, progressive);
    EXPECT_LT(grey.size(), size_t{4096 * 4096 / 64 / 8 * 3});
    const Image image = decode_image(as_bytes(grey), "grey.jpg");
    EXPECT_EQ(image.width, 4096);
    EXPECT_EQ(image.rgb, std::vector<uint8_t>(size_t{4096} * 4096 * 3, 128));
  }
}

TEST(PngTest, RoundTripOverSizesAndLevels) {
  for (const auto& [width, height] : {std::pair{1, 1}, {3, 1}, {1, 5}, {31, 33}, {257, 64}})
    for (const int level : {0, 1, 6, 9}) {
      const Image image = test_image(width, height);
      const Image back = decode_image(as_bytes(encode_png(image, {}, level)), "png");
      EXPECT_EQ(back.width, width);
      EXPECT_EQ(back.height, height);
      EXPECT_EQ(back.rgb, image.rgb) << width << "x" << height << " level " << level;
    }
}

TEST(PngTest, FiltersAreChosenByRow) {
  // A gradient along x costs nothing after "sub", one along y nothing after "up"; noise is best left alone or
  // nearly so.
  Image image = test_image(64, 64);
  for (size_t i = 0; i < image.rgb.size(); ++i)
    image.rgb[i] = static_cast<uint8_t>(i / 3 % 64 * 4 + i / 192 * 3);
  EXPECT_LT(encode_png(image).size(), 400u);
  EXPECT_EQ(encode_png(image), encode_png(image));
}

TEST(PngTest, TextRoundTrip) {
  const testing::TempDir dir;
  const auto path = dir / "t.png";
  const TextChunks text = {{"parameters", "a cat\nSteps: 4, CFG scale: 1.5\n{\"seed\": 42}"},
                           {"latin", "caf\xc3\xa9"},
                           {"unicode", "\xe7\x8c\xab and \xf0\x9f\x90\x88"},
                           {"tab", "a\tb"},
                           {"empty", ""},
                           {"parameters", "twice"}};
  write_png(path, test_image(4, 4), text);
  EXPECT_EQ(read_png_text(path), text);
  const std::string bytes = read_file(path);
  EXPECT_NE(bytes.find(std::string("tEXtlatin\0caf\xe9", 14)), std::string::npos);
  EXPECT_NE(bytes.find("iTXtunicode"), std::string::npos);
  EXPECT_EQ(decode_image(as_bytes(bytes), "x").rgb, test_image(4, 4).rgb);
  EXPECT_TRUE(decode_png_text(as_bytes(encode_png(test_image(2, 2))), "x").empty());
}

TEST(PngTest, TextThatCannotBeWritten) {
  const Image image = test_image(2, 2);
  for (const std::string& key : {std::string(), std::string(80, 'k'), std::string(" x"), std::string("a\nb"),
                                 std::string("\xe7\x8c\xab")})
    EXPECT_THROW(encode_png(image, {{key, "v"}}), RunError) << key;
  EXPECT_THROW(encode_png(image, {{"k", std::string("a\0b", 3)}}), RunError);
  Image broken = image;
  broken.rgb.pop_back();
  EXPECT_THROW(encode_png(broken), RunError);
  EXPECT_THROW(encode_png(Image{}), RunError);
}

TEST(PngTest, CompressedText) {
  const auto with = [](const std::string& type, const std::string& data) {
    std::string png = encode_png(test_image(2, 2));
    return png.insert(kPngHead, png_chunk(type, data));
  };
  const auto deflate = [](const std::string& text) {
    uLongf size = compressBound(static_cast<uLong>(text.size()));
    std::string out(size, '\0');
    compress(reinterpret_cast<Bytef*>(out.data()), &size, reinterpret_cast<const Bytef*>(text.data()),
             static_cast<uLong>(text.size()));
    out.resize(size);
    return out;
  };
  const auto text_of = [](const std::string& png) { return decode_png_text(as_bytes(png), "t.png"); };
  EXPECT_EQ(text_of(with("zTXt", std::string("k\0\0", 3) + deflate("caf\xe9"))),
            (TextChunks{{"k", "caf\xc3\xa9"}}));
  EXPECT_EQ(text_of(with("iTXt", std::string("k\0\1\0en\0K\0", 9) + deflate("\xe7\x8c\xab"))),
            (TextChunks{{"k", "\xe7\x8c\xab"}}));
  for (const auto& [type, data] :
       std::vector<std::pair<std::string, std::string>>{{"tEXt", "no end"},
                                                        {"tEXt", ""},
                                                        {"zTXt", std::string("k\0", 2)},
                                                        {"zTXt", std::string("k\0\1x", 4)},
                                                        {"zTXt", std::string("k\0\0junk", 7)},
                                                        {"iTXt", std::string("k\0\0\0", 4)},
                                                        {"iTXt", std::string("k\0\2\0\0\0", 6)}})
    expect_input_error([&] { text_of(with(type, data)); }, {"t.png"}, type);
  // 16 MiB and one byte.
  expect_input_error(
      [&] { text_of(with("zTXt", std::string("k\0\0", 3) + deflate(std::string((16 << 20) + 1, 'x')))); },
      {"more than"});
}

TEST(PngTest, DamageIsNoticed) {
  const std::string png = encode_png(test_image(13, 9), {{"k", "v"}});
  EXPECT_TRUE(decodes(png));
  EXPECT_TRUE(decodes(png + "tail"));
  for (size_t size = 0; size < png.size(); ++size) EXPECT_FALSE(decodes(png.substr(0, size))) << size;
  for (size_t i = 0; i < png.size(); ++i) {
    std::string bad = png;
    bad[i] ^= 0x10;
    EXPECT_FALSE(decodes(bad)) << "byte " << i;  // every byte is under a checksum
    EXPECT_THROW(decode_png_text(as_bytes(bad), "x"), InputError);
  }
}

// With the checksums made right again, so that the decoder itself meets the damage.
TEST(PngTest, DamageBehindTheChecksums) {
  const std::string png = encode_png(test_image(13, 9));
  const auto chunks = read_png_chunks(as_bytes(png), "x");
  Damage damage(4);
  for (int i = 0; i < 5000; ++i) {
    std::string bad = png.substr(0, 8);
    const uint64_t victim = damage.next(chunks.size() - 1);
    for (size_t c = 0; c < chunks.size(); ++c) {
      const std::string data(reinterpret_cast<const char*>(chunks[c].data.data()), chunks[c].data.size());
      bad += png_chunk(std::string(chunks[c].type), c == victim ? damage.apply(data) : data);
    }
    decodes(bad);
  }
}

TEST(PngTest, SizeIsCheckedBeforeMemoryIsAsked) {
  std::string header = encode_png(test_image(2, 2)).substr(16, 13);
  const auto decode = [&] {
    const std::string png = encode_png(test_image(2, 2)).substr(0, 8) + png_chunk("IHDR", header) +
                            png_chunk("IDAT", "") + png_chunk("IEND", "");
    decode_image(as_bytes(png), "wide.png");
  };
  put_u32(header, 0, 16385);
  expect_input_error(decode, {"wide.png: an image of 16385x2 is outside the limits of 16384 per side"});
  put_u32(header, 4, 0xffffffff);
  expect_input_error(decode, {"wide.png: an image of 16385x4294967295 is outside"});
  header.pop_back();
  expect_input_error(decode, {"wide.png", "IHDR has 12 bytes"});
}

TEST(PngTest, DataThatAreNoDeflateAreRefused) {
  const std::string png = encode_png(test_image(8, 8)).substr(0, kPngHead) +
                          png_chunk("IDAT", "\x78\x9c" + std::string(50, '\xff')) + png_chunk("IEND", "");
  expect_input_error([&] { decode_image(as_bytes(png), "raw.png"); }, {"raw.png: broken PNG: "});
}

TEST(PngTest, DataThatUnpackToMoreThanTheImageAreRefused) {
  const std::string png = encode_png(test_image(2, 2)), head = png.substr(0, kPngHead);
  const std::string zeros(200 << 20, '\0');
  std::string packed(compressBound(uLong(zeros.size())), '\0');
  uLongf size = uLongf(packed.size());
  ASSERT_EQ(compress(reinterpret_cast<Bytef*>(packed.data()), &size,
                     reinterpret_cast<const Bytef*>(zeros.data()), uLong(zeros.size())),
            Z_OK);
  packed.resize(size);
  // In two chunks, as encoders of large files write them.
  const std::string bomb = head + png_chunk("IDAT", packed.substr(0, 1000)) +
                           png_chunk("IDAT", packed.substr(1000)) + png_chunk("IEND", "");
  expect_input_error([&] { decode_image(as_bytes(bomb), "bomb.png"); },
                     {"bomb.png: broken PNG: its data unpack to more than", "2x2"});
  // Of a size that is looked into, and honest.
  Image noise = test_image(300, 200);
  uint32_t state = 1;
  for (uint8_t& value : noise.rgb) value = uint8_t((state = state * 1664525 + 1013904223) >> 24);
  EXPECT_EQ(decode_image(as_bytes(encode_png(noise)), "noise.png").rgb, noise.rgb);
}

TEST(PnmTest, ReadsItsKinds) {
  const auto pixels = [](const std::string& text) { return decode_image(as_bytes(text), "x").rgb; };
  const std::vector<uint8_t> expected = {0, 0, 0, 255, 255, 255};
  EXPECT_EQ(pixels("P2\n# a comment\n2 1\n255\n0 255\n"), expected);
  EXPECT_EQ(pixels("P2 2 1 7 0 7"), expected);
  EXPECT_EQ(pixels(std::string("P5 2 1 255\n\0\xff", 13)), expected);
  EXPECT_EQ(pixels(std::string("P5 2 1 65535\n\0\0\xff\xff", 17)), expected);
  EXPECT_EQ(pixels("P3 1 1 255 1 2 3"), (std::vector<uint8_t>{1, 2, 3}));
  EXPECT_EQ(pixels("P6 1 1 255\nabc"), (std::vector<uint8_t>{'a', 'b', 'c'}));
}

TEST(PnmTest, HostileFiles) {
  for (const char* text :
       {"P5", "P5 ", "P5 2 2 255\nab", "P5 0 2 255\n", "P6 99999 1 255\n", "P6 16384 16384 255\nabc",
        "P5 1 1 0\na", "P5 1 1 70000\na", "P2 1 1 7 8", "P2 2 2 255 1 2 3", "P2 1 1 255 9999999",
        "P3 1 1 255 1 2 x", "P5 -1 1 255\na", "P1 1 1 0", "P5 1 1 255"})
    EXPECT_FALSE(decodes(text)) << text;
}

TEST(ImageTest, OtherBytes) {
  const testing::TempDir dir;
  expect_input_error([] { decode_image({}, "e.png"); }, {"e.png", "empty"});
  expect_input_error([] { decode_image(as_bytes("hello world"), "n.txt"); }, {"n.txt", "no image"});
  expect_input_error([&] { read_image(dir / "none.png"); }, {"none.png"});
  EXPECT_FALSE(decodes("BM"));
  EXPECT_FALSE(decodes("GIF89a"));
  EXPECT_FALSE(decodes("\xff\xd8\xff"));
}

TEST(ImageTest, HugeBmpAndGifAreNamedInOurWords) {
  std::string bmp(
      "BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x01\0\0\x7f\x01\0\0\x7f\x01\0\x18\0\0\0\0\0\x04\0\0\0\0\0\0\0"
      "\0\0\0\0\0\0\0\0\0\0\0\0\x03\x02\x01\0",
      58);
  expect_input_error([&] { decode_image(as_bytes(bmp), "b.bmp"); }, {"b.bmp: ", "limits of 16384 per side"});
  const std::string gif =
      from_hex("474946383961ffffffff800000010203ffffff2c0000000001000100000202024401003b");
  expect_input_error([&] { decode_image(as_bytes(gif), "g.gif"); },
                     {"g.gif: an image of 65535x65535 is outside the limits of 16384 per side"});
}

// BMP and GIF files from here: a 24-bit BMP by hand and the smallest GIF.
TEST(ImageTest, BmpAndGif) {
  std::string bmp(
      "BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\x18\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\0"
      "\0\0\0\0\0\0\0\0\0\0\x03\x02\x01\0",
      58);
  EXPECT_EQ(decode_image(as_bytes(bmp), "x").rgb, (std::vector<uint8_t>{1, 2, 3}));
  const std::string gif = from_hex("47494638396101000100800000010203ffffff2c00000000010001000002024401003b");
  EXPECT_EQ(decode_image(as_bytes(gif), "x").rgb, (std::vector<uint8_t>{1, 2, 3}));
  Damage damage(5);
  for (int i = 0; i < 4000; ++i) {
    decodes(damage.apply(bmp));
    decodes(damage.apply(gif));
  }
  for (size_t size = 0; size < bmp.size(); ++size) decodes(bmp.substr(0, size));
  for (size_t size = 0; size < gif.size(); ++size) decodes(gif.substr(0, size));
}

// A header that promises 16384 x 16384 pixels in a few bytes is turned away before they are allocated.
TEST(StbTest, SizesAreHeldAgainstTheFile) {
  std::string gif("GIF89a\x00\x40\x00\x40\x00\x00\x00", 13);
  gif += std::string(";");
  expect_input_error([&] { decode_image(as_bytes(gif), "f.gif"); },
                     {"f.gif", "14 bytes cannot hold an image of 16384x16384"});
}

}  // namespace
}  // namespace adanat
