// Frozen networks that look at images: perceptual losses, rewards and metrics all take one of these.
#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace adanat {

// One frozen network with named taps. Not thread-safe. Its weights never receive gradients; images may.
class FeatureNet {
 public:
  virtual ~FeatureNet();
  virtual std::string kind() const = 0;               // "classifier", "lpips-vgg", "inception", "vit"
  virtual std::vector<std::string> taps() const = 0;  // from the first layer to the last
  // images (B, 3, H, W) float in [0, 1]; the network's own preprocessing is applied here. Differentiable
  // towards the images. Returns the taps in the order asked: "pool" and "logits" are (B, F), all others (B,
  // C, h, w) ("inception": all taps are (B, F)). Layers behind the deepest tap are not computed. InputError
  // for a name that is no tap.
  virtual std::vector<at::Tensor> forward(const at::Tensor& images, const std::vector<std::string>& taps) = 0;
  // Weight (C) of each channel of a spatial tap in the perceptual distance; undefined where the kind has
  // none.
  virtual at::Tensor channel_weight(const std::string& tap) const;
  virtual void to(at::Device device) = 0;
  // Side of the square that images are resized to; 0 = they are taken as they come.
  virtual int64_t image_size() const { return 0; }
  // SHA-256 of the file it was read from.
  const std::string& file_hash() const { return file_hash_; }

 protected:
  std::string file_hash_;

 private:
  friend std::unique_ptr<FeatureNet> load_feature_net(const std::filesystem::path& file);
};

// Reads a safetensors file, or a PyTorch file without executing anything in it. Its kind is the metadata key
// "kind"; a file without one whose keys are those of the lpips package is taken for "lpips-vgg", one with
// those of pytorch-fid for "inception", one with the keys of timm's vision transformers for "vit".
//
// - classifier: written by the classifier recipe (core/features/classifier_recipe.h). Metadata: "config"
//   (JSON of ClassifierConfig with sizes and preprocessing), "format" "1". Taps: stem, stage1..stageK, pool,
//   logits.
// - lpips-vgg: VGG16's convolutions and the linear weights of LPIPS, with the keys of the lpips package's
//   state dict (richzhang/PerceptualSimilarity, lpips.LPIPS(net="vgg").state_dict() saved as safetensors):
//   net.slice{1..5}.{index in torchvision's vgg16.features}.{weight,bias}, lin{0..4}.model.1.weight
//   (1, C, 1, 1), optionally scaling_layer.{shift,scale} and the copies lins.{i}.*, which are ignored. Taps:
//   relu1_2, relu2_2, relu3_3, relu4_3, relu5_3. Images are scaled to [-1, 1], then with LPIPS's shift and
//   scale; they are not resized; sides must be 16 or more.
// - inception: the Inception network of FID, core/features/inception.h:
//   pt_inception-2015-12-05-6726825d.pth (pytorch-fid), weights-inception-2015-12-05-6726825d.pth
//   (torch-fidelity) or the same state dict as safetensors. A file with another hash is read with a warning
//   that says so.
// - vit: a ViT in timm's layout (core/features/vit.h), known by its keys or its kind. Taps: position,
//   block<i>.
// InputError naming the file: unknown kind, a newer format, missing, surplus or misshapen tensors.
std::unique_ptr<FeatureNet> load_feature_net(const std::filesystem::path& file);

}  // namespace adanat
