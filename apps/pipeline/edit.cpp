#include "apps/pipeline/edit.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>

#include "core/base/error.h"
#include "core/io/crop_geometry.h"
#include "core/io/resample.h"
#include "kernels/philox.h"

namespace adanat {
namespace {

PixelMask make_mask(int width, int height, uint8_t value = 0) {
  return {width, height, std::vector<uint8_t>(size_t(width) * size_t(height), value)};
}

// Four integers with commas between them.
std::array<int, 4> parse_four(const char* flag, const std::string& text, const char* form, int lowest) {
  std::array<int, 4> out{};
  const char *at = text.data(), *const end = at + text.size();
  for (size_t i = 0; i < out.size(); ++i) {
    const auto [last, code] = std::from_chars(at, end, out[i]);
    const bool ends_well = i + 1 < out.size() ? last != end && *last == ',' : last == end;
    if (code != std::errc() || !ends_well || out[i] < lowest || out[i] > kMaxImageSide)
      throw InputError(cat(flag, " ", text, ": must be ", form, ", four whole numbers of pixels from ",
                           lowest, " to ", kMaxImageSide));
    at = last + 1;
  }
  return out;
}

// Where `count` units in a row, of which [first, first + length) is looked at, lie over `pixels` pixels: unit
// i covers the pixels [begin(i), end(i)), those that it only touches in a part included.
struct Footprint {
  int64_t pixels, count, first;
  int64_t begin(int64_t i) const { return (first + i) * pixels / count; }
  int64_t end(int64_t i) const { return ((first + i + 1) * pixels + count - 1) / count; }
};

}  // namespace

Box parse_box(const std::string& text) {
  const auto [x, y, w, h] = parse_four("--box", text, "X,Y,WIDTH,HEIGHT", 0);
  if (w < 1 || h < 1) throw InputError(cat("--box ", text, ": width and height must be 1 or more"));
  return {x, y, w, h};
}

Border parse_border(const std::string& text) {
  const auto [l, t, r, b] = parse_four("--expand", text, "LEFT,TOP,RIGHT,BOTTOM", 0);
  return {l, t, r, b};
}

PixelMask mask_of_image(const Image& image) {
  PixelMask out = make_mask(image.width, image.height);
  for (size_t i = 0; i < out.on.size(); ++i) {
    const uint8_t* p = image.rgb.data() + 3 * i;
    out.on[i] = 2 * (p[0] + p[1] + p[2]) >= 3 * 255;
  }
  return out;
}

PixelMask mask_of_box(int width, int height, const Box& box) {
  if (box.left < 0 || box.top < 0 || box.width < 1 || box.height < 1 || box.width > width - box.left ||
      box.height > height - box.top)
    throw InputError(cat("--box ", box.left, ",", box.top, ",", box.width, ",", box.height,
                         ": leaves the image, which is ", width, "x", height, " pixels"));
  PixelMask out = make_mask(width, height);
  for (int y = box.top; y < box.top + box.height; ++y)
    std::fill_n(out.on.begin() + int64_t(y) * width + box.left, box.width, uint8_t(1));
  return out;
}

PixelMask dilate(const PixelMask& mask, int64_t n) {
  if (n <= 0) return mask;
  const int64_t w = mask.width, h = mask.height;
  // A pixel is on if the last one that was on, going either way, is at most n away: first along rows, then
  // along columns of the result.
  PixelMask rows = make_mask(mask.width, mask.height);
  for (int64_t y = 0; y < h; ++y) {
    const uint8_t* from = mask.on.data() + y * w;
    uint8_t* to = rows.on.data() + y * w;
    for (int64_t x = 0, last = -n - 1; x < w; ++x) {
      if (from[x]) last = x;
      to[x] = x - last <= n;
    }
    for (int64_t x = w - 1, last = w + n; x >= 0; --x) {
      if (from[x]) last = x;
      to[x] |= last - x <= n;
    }
  }
  PixelMask out = make_mask(mask.width, mask.height);
  std::vector<int64_t> last(static_cast<size_t>(w), -n - 1);
  for (int64_t y = 0; y < h; ++y)
    for (int64_t x = 0; x < w; ++x) {
      if (rows.on[size_t(y * w + x)]) last[size_t(x)] = y;
      out.on[size_t(y * w + x)] = y - last[size_t(x)] <= n;
    }
  std::fill(last.begin(), last.end(), h + n);
  for (int64_t y = h - 1; y >= 0; --y)
    for (int64_t x = 0; x < w; ++x) {
      if (rows.on[size_t(y * w + x)]) last[size_t(x)] = y;
      out.on[size_t(y * w + x)] |= last[size_t(x)] - y <= n;
    }
  return out;
}

PixelMask adm_center_crop(const PixelMask& mask, int size) {
  const CropGeometry to = adm_geometry(mask.width, mask.height, size);
  const Footprint across{mask.width, to.width, to.left}, down{mask.height, to.height, to.top};
  PixelMask out = make_mask(size, size);
  std::vector<uint8_t> row(static_cast<size_t>(mask.width));
  for (int y = 0; y < size; ++y) {
    // All rows under this one as one row; then each pixel's part of it.
    std::fill(row.begin(), row.end(), uint8_t(0));
    for (int64_t from = down.begin(y); from < down.end(y); ++from) {
      const uint8_t* source = mask.on.data() + from * mask.width;
      for (size_t x = 0; x < row.size(); ++x) row[x] |= source[x];
    }
    for (int x = 0; x < size; ++x)
      out.on[size_t(y) * size_t(size) + size_t(x)] =
          std::find(row.begin() + across.begin(x), row.begin() + across.end(x), uint8_t(1)) !=
          row.begin() + across.end(x);
  }
  return out;
}

Canvas expand(const Image& image, const Border& border) {
  const int64_t wide = int64_t(image.width) + border.left + border.right,
                high = int64_t(image.height) + border.top + border.bottom, side = std::max(wide, high);
  if (side > kMaxImageSide)
    throw InputError(cat("--expand ", border.left, ",", border.top, ",", border.right, ",", border.bottom,
                         ": makes a canvas of ", side, "x", side, " pixels, over the limit of ",
                         kMaxImageSide, " a side; scale the image down first, or expand it by less"));
  const int64_t left = border.left + (side - wide) / 2, top = border.top + (side - high) / 2;
  const int n = int(side);
  Canvas out{{n, n, std::vector<uint8_t>(size_t(n) * size_t(n) * 3)}, make_mask(n, n, 1)};
  for (int64_t y = 0; y < side; ++y) {
    const int64_t from = std::clamp<int64_t>(y - top, 0, image.height - 1);
    const uint8_t* source = image.rgb.data() + from * image.width * 3;
    uint8_t* to = out.image.rgb.data() + y * side * 3;
    for (int64_t x = 0; x < left; ++x) std::memcpy(to + 3 * x, source, 3);
    std::memcpy(to + 3 * left, source, size_t(image.width) * 3);
    for (int64_t x = left + image.width; x < side; ++x)
      std::memcpy(to + 3 * x, source + 3 * (image.width - 1), 3);
    if (y >= top && y < top + image.height)
      std::fill_n(out.mask.on.begin() + y * side + left, image.width, uint8_t(0));
  }
  return out;
}

int64_t EditPlan::remade() const {
  const int64_t on = std::count(cells.begin(), cells.end(), uint8_t(1));
  if (on == 0 || strength <= 0) return 0;
  return std::clamp<int64_t>(std::llround(strength * double(on)), 1, on);
}

std::vector<uint8_t> EditPlan::choose(int64_t seed, int64_t image_index) const {
  const int64_t count = remade();
  std::vector<std::pair<uint32_t, size_t>> ranked;  // draw and position
  for (size_t p = 0; p < cells.size(); ++p)
    if (cells[p])
      ranked.emplace_back(
          kernels::draw(uint64_t(seed), 0, uint32_t(p), uint32_t(image_index), 0, kernels::Stream::kEdit).x,
          p);
  std::sort(ranked.begin(), ranked.end());
  std::vector<uint8_t> chosen(cells.size(), 0);
  for (int64_t i = 0; i < count; ++i) chosen[ranked[size_t(i)].second] = 1;
  return chosen;
}

EditPlan plan_edit(const Image& image, const EditRequest& request, int size, int factor) {
  if (int(request.mask.has_value()) + int(request.box.has_value()) + int(request.border.has_value()) > 1)
    throw RunError("an edit takes one of mask, box and border");
  if (size < 1 || factor < 1 || size % factor != 0)
    throw RunError(cat("cells of ", factor, " pixels do not divide an image of ", size));
  if (!(request.strength >= 0 && request.strength <= 1))
    throw InputError(cat("--strength ", request.strength, ": must be in [0, 1]"));
  if (request.dilate < 0 || request.dilate > kMaxImageSide)
    throw InputError(cat("--dilate ", request.dilate, ": must be 0 to ", kMaxImageSide, " pixels"));
  EditPlan plan;
  plan.factor = factor;
  plan.strength = request.strength;
  PixelMask mask;
  if (request.border) {
    Canvas canvas = expand(image, *request.border);
    plan.image = adm_center_crop(canvas.image, size);
    mask = std::move(canvas.mask);
  } else {
    plan.image = adm_center_crop(image, size);
    if (request.box) {
      mask = mask_of_box(image.width, image.height, *request.box);
    } else if (request.mask) {
      mask = *request.mask;
      if (mask.width != image.width || mask.height != image.height)
        throw InputError(cat("--mask ", request.mask_name, ": is ", mask.width, "x", mask.height,
                             " pixels, the image is ", image.width, "x", image.height,
                             "; both must have one size"));
    } else {
      mask = make_mask(image.width, image.height, 1);
    }
  }
  plan.mask = adm_center_crop(dilate(mask, request.dilate), size);
  const int g = plan.grid();
  plan.cells.assign(size_t(g) * size_t(g), 0);
  for (int y = 0; y < size; ++y)
    for (int x = 0; x < size; ++x)
      plan.cells[size_t(y / factor * g + x / factor)] |= plan.mask.on[size_t(y) * size_t(size) + size_t(x)];
  return plan;
}

void paste_back(const EditPlan& plan, const std::vector<uint8_t>& chosen, uint8_t* planes) {
  const int s = plan.image.width, f = plan.factor, g = plan.grid(), feather = std::max(1, f / 2);
  const auto plane = int64_t(s) * s;
  std::vector<uint8_t> kept(static_cast<size_t>(plane));
  for (int y = 0; y < s; ++y)
    for (int x = 0; x < s; ++x)
      kept[size_t(y * s + x)] =
          !(plan.mask.on[size_t(y) * size_t(s) + size_t(x)] && chosen[size_t(y / f * g + x / f)]);
  const auto given = [&](int64_t p, int c) { return int(plan.image.rgb[size_t(3 * p + c)]); };
  const std::vector<uint8_t> decoded(planes, planes + 3 * plane);
  for (int y = 0; y < s; ++y) {
    for (int x = 0; x < s; ++x) {
      const int64_t p = int64_t(y) * s + x;
      if (kept[size_t(p)]) {
        for (int c = 0; c < 3; ++c) planes[c * plane + p] = uint8_t(given(p, c));
        continue;
      }
      // Rings around the pixel, from the nearest outwards, until one holds a kept pixel.
      for (int d = 1; d <= feather; ++d) {
        std::array<int64_t, 3> sum{};
        int64_t count = 0;
        for (int j = std::max(0, y - d); j <= std::min(s - 1, y + d); ++j)
          for (int i = std::max(0, x - d); i <= std::min(s - 1, x + d); ++i) {
            const int64_t q = int64_t(j) * s + i;
            if (!kept[size_t(q)]) continue;
            ++count;
            for (int c = 0; c < 3; ++c) sum[size_t(c)] += given(q, c) - decoded[size_t(c * plane + q)];
          }
        if (count == 0) continue;
        const double weight = 1 - double(d) / (feather + 1);
        for (int c = 0; c < 3; ++c) {
          const double moved =
              decoded[size_t(c * plane + p)] + weight * double(sum[size_t(c)]) / double(count);
          planes[c * plane + p] = uint8_t(std::clamp(std::lround(moved), 0L, 255L));
        }
        break;
      }
    }
  }
}

}  // namespace adanat
