// Editing a given picture: which of its pixels and tokens are made anew, and how the kept pixels come back.
// The picture and its mask become a square of the model's size; the kept tokens are where the sampler starts.
// Free of torch. docs/editing.md has the rules with pictures.
//
// Legend: S side of the model's images, f pixels a token covers per side, cell = the f x f pixels of a token,
// g = S/f, N = g*g tokens in row-major order.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/io/image.h"

namespace adanat {

// One byte per pixel: 1 = make anew, 0 = keep. on[y*width + x]; on.size() == width*height.
struct PixelMask {
  int width = 0, height = 0;
  std::vector<uint8_t> on;
};

// In pixels of the given picture. width, height >= 1.
struct Box {
  int left = 0, top = 0, width = 1, height = 1;
};
// Pixels to add on each side, 0..16384.
struct Border {
  int left = 0, top = 0, right = 0, bottom = 0;
};

// "x,y,w,h" and "l,t,r,b": four integers. InputError that names the flag, the text and the wanted form.
Box parse_box(const std::string& text);
Border parse_border(const std::string& text);

// White is made anew: a pixel whose mean of red, green and blue is at least 127.5.
PixelMask mask_of_image(const Image& image);
// InputError unless the box lies inside.
PixelMask mask_of_box(int width, int height, const Box& box);
// Grown by n pixels in all eight directions (a square of side 2n+1 around every pixel that is on). n >= 0.
PixelMask dilate(const PixelMask& mask, int64_t n);
// What adm_center_crop does to a picture of the mask's size: a pixel of the result is on where any pixel that
// is on lies under a part of it, however small. So a mask never shrinks; it may grow by less than a pixel.
PixelMask adm_center_crop(const PixelMask& mask, int size);

// A picture inside a larger canvas, the new border on in the mask and filled with the picture's edge pixels
// (what is kept of the border after scaling, and what the tokenizer sees beside a kept cell, fits the
// picture then). Models make squares: where the border leaves another shape, the shorter side gets more on
// both ends, the spare pixel right or below. InputError: a side over kMaxImageSide.
struct Canvas {
  Image image;
  PixelMask mask;
};
Canvas expand(const Image& image, const Border& border);

// What is asked for. At most one of mask, box and border; none = every pixel may be made anew.
struct EditRequest {
  std::optional<PixelMask> mask = {};  // of the picture's size
  std::string mask_name = {};          // for messages: its file
  std::optional<Box> box = {};
  std::optional<Border> border = {};
  int64_t dilate = 0;   // pixels of the given picture
  double strength = 1;  // share of the tokens under the mask that is made anew, [0, 1]
};

// The picture as the model sees it. A token is made anew when any pixel that is on falls into its cell, and
// the strength chooses it.
struct EditPlan {
  Image image;                 // S x S
  PixelMask mask;              // S x S
  std::vector<uint8_t> cells;  // (N), 1 where a pixel of the cell is on
  int factor = 1;              // f
  double strength = 1;

  int grid() const { return image.width / factor; }
  // Tokens that are made anew, the same number in every image of the edit: round(strength * cells that are
  // on), at least 1 where the strength is above 0 and a cell is on.
  int64_t remade() const;
  // The choice for one image, (N), 1 = make anew. Where the strength is below 1, a cell's Philox draw of
  // (seed, image index, position) ranks it: another image is another choice, the batch is no part of it, and
  // a higher strength makes anew what a lower one does and more. Source: kernels/philox.h, stream kEdit.
  std::vector<uint8_t> choose(int64_t seed, int64_t image_index) const;
};

// size S, a multiple of factor f. InputError: a mask of another size (both sides), a box that leaves the
// picture, a canvas too large. RunError: more than one of mask, box and border.
EditPlan plan_edit(const Image& image, const EditRequest& request, int size, int factor);

// Puts the kept pixels back into a decoded picture: planes is (3, S, S), chosen (N) of plan.choose().
//
// Every pixel that is off in the mask, or whose token was kept, becomes the given picture's again, bit for
// bit. Beside them the decoded pixels are moved so that the seam does not show: decoded + (1 - d/(F+1)) * e
// for the distances d = 1..F to the nearest kept pixel (Chebyshev), where e is the mean difference given -
// decoded of the kept pixels at that distance, and F = max(1, f/2). Nothing of what was masked shines
// through, as it would if old and new pixels were mixed there, so a mask as thin as a scratch works too.
void paste_back(const EditPlan& plan, const std::vector<uint8_t>& chosen, uint8_t* planes);

}  // namespace adanat
