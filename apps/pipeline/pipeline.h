// Model folder -> images: the one entry for the command line, benchmarks and programs that embed adanat.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "apps/pipeline/model_folder.h"
#include "core/io/image.h"
#include "core/sampling/recorded_sampler.h"
#include "core/text/clip.h"

namespace adanat {

// One batch of images to make: sizes of both lists are equal.
struct BatchRequest {
  std::vector<int64_t> classes;  // ids; for a model of texts: places in the list given to set_prompts
  int64_t seed = 42;
  int64_t first_index = 0;  // image i of the batch is image first_index + i of the seed
  at::Tensor start = {};    // (B, N) i64 on the CPU: known tokens, V = to be made; undefined = all to be made
};

struct BatchResult {
  at::Tensor tokens;  // (B, N) i64 on the CPU
  at::Tensor images;  // (B, 3, S, S) u8 on the CPU
};

// Loaded once, used for many batches. Not thread-safe.
class Pipeline {
 public:
  // Loads the generator in `dtype` and the tokenizer in float32 (on a GPU it decodes in bfloat16 where that
  // is `dtype`). InputError: no such folder, a part missing or unfit.
  static Pipeline open(const std::filesystem::path& folder, at::Device device, at::ScalarType dtype);

  const std::filesystem::path& folder() const { return folder_; }
  const ModelConfig& config() const { return config_; }
  at::Device device() const { return device_; }
  GeneratorImpl& generator() { return *generator_; }
  TokenizerImpl& tokenizer() { return *tokenizer_; }
  // SHA-256 of generator.safetensors as config.json has it: what the images' metadata names.
  const std::string& model_hash() const;

  // The schedule by its command-line name; steps 0 = the folder's default (or those of `policy`). `chosen`
  // "": adaptive where the folder has a policy for these steps or `policy` names a file, else cosine (said in
  // a note). `policy`: the file that adaptive reads instead of the folder's own. InputError: no policy, or
  // one that does not fit (both sides).
  std::unique_ptr<Schedule> schedule(const std::string& chosen, int64_t steps, const TableOptions& options,
                                     const std::filesystem::path& policy = {}) const;

  // Models of texts: the texts that requests choose from. Encodes each of them once, and the empty one; the
  // encoder is in memory only for that long. A warning names what is too long. InputError: a model of
  // classes, no encoder in the folder, or one of other sizes than the generator's.
  void set_prompts(const std::vector<std::string>& prompts);
  // The same with an encoder of open_text_encoder that the caller keeps, for one list after another. `cut`:
  // as in ClipTextEncoder::tokenize.
  void set_prompts(const std::vector<std::string>& prompts, const ClipTextEncoder& encoder, int64_t* cut);

  // RunError naming the folder: the weights give a logit that is not a number.
  BatchResult generate(const BatchRequest& request, const Schedule& schedule,
                       const std::vector<SamplerObserver*>& observers = {});
  // The tokens of generate alone, (B, N) i64 on the device.
  at::Tensor generate_tokens(const BatchRequest& request, const Schedule& schedule,
                             const std::vector<SamplerObserver*>& observers = {});
  // tokens -> (B, 3, S, S) f32 in [0, 1] on the device, not rounded to bytes.
  at::Tensor decode_unit(const at::Tensor& tokens);
  // images (B, 3, S, S) u8, any device -> tokens (B, N) i64 on the CPU.
  at::Tensor encode(const at::Tensor& images);
  // tokens (B, N) i64, any device -> (B, 3, S, S) u8 on the CPU.
  at::Tensor decode(const at::Tensor& tokens);

 private:
  Pipeline(std::filesystem::path folder, ModelConfig config, at::Device device)
      : folder_(std::move(folder)), config_(std::move(config)), device_(device) {}
  std::filesystem::path folder_;
  ModelConfig config_;
  at::Device device_;
  Tokenizer tokenizer_{nullptr};
  Generator generator_{nullptr};
  std::optional<RecordedSampler> sampler_;  // of the generator
  TextConditions prompts_;                  // of models of texts, once they are set
};

// Opens the text encoder of a folder and compares its sizes with the generator's. InputError as above.
ClipTextEncoder open_text_encoder(const std::filesystem::path& folder, const ModelConfig& config,
                                  at::Device device);

// Loads the generator of a folder for inference, without gradients.
Generator open_generator(const std::filesystem::path& folder, const ModelConfig& config, at::Device device,
                         at::ScalarType dtype);
// Loads the tokenizer of a folder in float32 for inference.
Tokenizer open_tokenizer(const std::filesystem::path& folder, const ModelConfig& config, at::Device device);
// Decodes with a given tokenizer: floats outside [0, 1] are clamped, then round(255 x).
at::Tensor decode_to_bytes(TokenizerImpl& tokenizer, const at::Tensor& tokens);

// (3, H, W) u8 on the CPU -> Image.
Image to_image(const at::Tensor& planes);
// images (B, 3, H, W) u8 in reading order; rows*columns >= B, unused cells are white. `gap` pixels between
// cells.
Image make_grid(const at::Tensor& images, int64_t rows, int64_t columns, int64_t gap = 2);
// A grid as square as it can be, wider than high.
std::pair<int64_t, int64_t> grid_shape(int64_t count);

}  // namespace adanat
