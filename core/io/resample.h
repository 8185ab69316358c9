// Resizing that equals Pillow's to the last bit, and the geometric steps of the data preparation
// (docs/method.md section 8).
#pragma once
#include "core/io/image.h"

namespace adanat {

enum class Filter { kBox, kBicubic };

// Image.resize((width, height), BOX or BICUBIC) of Pillow 13: a horizontal and a vertical pass, each in 8-bit
// fixed point (22 fraction bits), bicubic with a = -0.5, the filter's support widened by the scale when
// shrinking (antialiasing). The vertical pass comes first if it takes away more than twice as many rows as
// the other takes columns, else second (Pillow before 13: always second; results then differ by 1 here and
// there). A pass whose size does not change is left out. width, height >= 1, else RunError. Source:
// Pillow 13.0.0 src/libImaging/Resample.c (MIT-CMU licence), written anew.
Image resample(const Image& image, int width, int height, Filter filter);

// Image.resize((width, height), BICUBIC) of each channel alone in Pillow's mode "F": double weights and sums,
// float32 between the passes, nothing rounded or clamped (values leave 0..255 where the filter overshoots).
// Planar: value (channel, y, x) is out[(channel * height + y) * width + x]. Passes in the order of
// resample(). What clean-fid feeds its network, after clamping to 0..255. width, height >= 1, else RunError.
std::vector<float> resize_bicubic_float(const Image& image, int width, int height);

// The ADM transform: while the short side >= 2*size, halve (floor) with the box filter; bicubic so that the
// short side is `size` (long side rounded half to even); centre crop to (size, size), the spare pixel going
// right and below. Also enlarges smaller images. size >= 1.
Image adm_center_crop(const Image& image, int size);

// The window with its upper left corner at (left, top). It must lie inside the image, else RunError.
Image crop(const Image& image, int left, int top, int width, int height);

// Mirror image: x -> width-1-x.
Image flip_horizontal(const Image& image);

}  // namespace adanat
