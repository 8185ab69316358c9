// Where the pixels of a picture end up in the training crop, for what has to follow it (masks, say).
#pragma once

namespace adanat {

// What adm_center_crop (core/io/resample.h) scales an image to, and where its window lies in that. Pixel
// (x, y) of the result covers, before filters blur it, the part [(left+x) * w/width, (left+x+1) * w/width) of
// an image that is w wide, and likewise of its height: every resize maps the whole width to the whole width.
struct CropGeometry {
  int width, height;  // scaled; the shorter one is the size
  int left, top;      // of the window
};

// width, height, size >= 1, else RunError. InputError: an image so long and narrow that, scaled, it would
// have over kMaxImagePixels.
CropGeometry adm_geometry(int width, int height, int size);

}  // namespace adanat
