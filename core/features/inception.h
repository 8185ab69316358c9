// The Inception network of the FID literature: Inception-v3 as TensorFlow published it on 2015-12-05, in the
// port that pytorch-fid, torch-fidelity and clean-fid share. It is not torchvision's Inception: the norms
// have eps 0.001, mean pools leave out the padding, the last block (Mixed_7c) pools by maximum, and there are
// 1008 classes.
//
// Layers (299 x 299 input): Conv2d_1a_3x3 (32), 2a (32), 2b (64), max pool, Conv2d_3b_1x1 (80), 4a_3x3 (192),
// max pool, Mixed_5b..5d (35 x 35: 256, 288, 288), 6a..6e (17 x 17: 768), 7a..7c (8 x 8: 1280, 2048, 2048),
// mean, fc. Source: Szegedy et al., Rethinking the Inception Architecture (2016); torch-fidelity
// feature_extractor_inceptionv3.py, pytorch-fid inception.py (names of the tensors, the deviations above).
#pragma once
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "core/features/feature_net.h"
#include "core/nn/tensor_file.h"

namespace adanat {

// What happens to images before the first convolution. The field's tools differ here, and so do their
// figures.
enum class InceptionInput {
  kTf1,        // torch-fidelity, ADM: TensorFlow 1's bilinear resize, then (x - 128) / 128
  kHalfPixel,  // pytorch-fid, AdaNAT: bilinear resize with half-pixel centres, no antialiasing, on [0, 1],
               // then 2 x - 1
  kResized,    // clean-fid: images come as (B, 3, 299, 299) in 0..255 (core/io/resample.h), only (x - 128) /
               // 128 here
};

// The normalised input (B, 3, 299, 299) float of the network. images (B, 3, H, W): uint8 (0..255), or float
// in [0, 1] (kTf1 multiplies it by 255; it is not rounded); for kResized float in 0..255. Differentiable for
// float images. InputError: another dtype or shape.
at::Tensor inception_input(const at::Tensor& images, InceptionInput input);

// The resize alone: (B, 3, 299, 299) float, 0..255 for kTf1 and [0, 1] for kHalfPixel.
at::Tensor inception_resize(const at::Tensor& images, InceptionInput input);

// Taps, all of them vectors:
//   64, 192, 768      (B, n)     mean over space of the first and second max pool and of Mixed_6e
//   2048, pool        (B, 2048)  mean over space of Mixed_7c: the features of FID and KID
//   logits            (B, 1008)  fc with its bias
//   logits_unbiased   (B, 1008)  fc without its bias: what the Inception Score uses
//   spatial           (B, 2023)  the first 7 channels of Mixed_6d.branch1x1 after its ReLU, 17 x 17, in (row,
//                                column, channel) order: the features of sFID
// Norms are folded into the convolutions in float64, which are run channels-last: against the unfolded
// network this is float32 noise (tests/features/inception_test.cpp). Not thread-safe.
class InceptionNet : public FeatureNet {
 public:
  // The state dict under the names of pytorch-fid and torch-fidelity: Conv2d_1a_3x3.conv.weight, .bn.{weight,
  // bias, running_mean, running_var}, Mixed_5b.branch3x3dbl_2..., fc.{weight,bias}; num_batches_tracked is
  // ignored. Any floating dtype. InputError naming `where`: missing, surplus or misshapen tensors.
  InceptionNet(const TensorMap& tensors, const std::string& where);
  ~InceptionNet() override;

  // Every tensor that the constructor wants, with its shape.
  static std::vector<std::pair<std::string, std::vector<int64_t>>> layout();
  // True if the names are those of this network.
  static bool recognises(const TensorMap& tensors);

  std::string kind() const override;               // "inception"
  std::vector<std::string> taps() const override;  // as above
  // images: as inception_input() takes them with input().
  std::vector<at::Tensor> forward(const at::Tensor& images, const std::vector<std::string>& taps) override;
  // Behind the preprocessing: x (B, 3, 299, 299) as inception_input() gives it.
  std::vector<at::Tensor> forward_prepared(const at::Tensor& x, const std::vector<std::string>& taps);
  void to(at::Device device) override;

  InceptionInput input() const { return input_; }
  void set_input(InceptionInput input) { input_ = input; }

 private:
  struct Layers;
  std::unique_ptr<Layers> layers_;
  InceptionInput input_ = InceptionInput::kTf1;
};

// True if a file hash (64 hex digits) is that of the published weights as far as it is known: torch.hub's
// file names carry the first eight digits, 6726825d (pt_inception-2015-12-05-6726825d.pth,
// weights-inception-2015-12-05-6726825d.pth). Files in other containers hold the same weights under another
// hash.
bool is_published_inception(const std::string& file_hash);

}  // namespace adanat
