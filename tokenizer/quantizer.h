// Training of the codebook: straight-through quantisation, its losses, the two ways to move the codes,
// revival of dead ones. Source: docs/method.md section 2; EMA codebook: van den Oord et al. 2017, appendix
// A.1; unit-length codes: Yu et al. 2022.
#pragma once
#include "core/train/optimizer.h"
#include "tokenizer/vqgan.h"

namespace adanat {

struct QuantizerConfig {
  std::string codebook = "ema";
  double decay = 0.99;
  double epsilon = 1e-5;
  double commitment = 0.25;
  int64_t revive_after = 100;

  static constexpr auto fields() {
    using C = QuantizerConfig;
    return std::tuple{
        field("codebook", &C::codebook,
              "how codes move: ema (averages of the latents that chose them) or gradient"),
        field("decay", &C::decay, "ema: share of the old average kept at each update, [0, 1)"),
        field("epsilon", &C::epsilon, "ema: Laplace smoothing of the counts, > 0"),
        field("commitment", &C::commitment, "weight of the term that pulls latents to their codes, >= 0"),
        field("revive_after", &C::revive_after,
              "updates without use until a code gets a random latent of the batch instead, 0 = never"),
    };
  }
  void validate() const;
  bool operator==(const QuantizerConfig&) const = default;
};

// Value of z_q, gradient of z: z + sg[z_q - z].
at::Tensor straight_through(const at::Tensor& z, const at::Tensor& z_q);

// mean((z_q - sg[z])^2) + commitment * mean((sg[z_q] - z)^2): the paper's form, 0-d. Equal shapes.
at::Tensor codebook_loss(const at::Tensor& z, const at::Tensor& z_q, double commitment);

struct Quantized {
  at::Tensor codes;  // (B, C, h, w): values of the chosen codes, straight-through gradient to the latents
  at::Tensor ids;    // (B, N) i64
  at::Tensor loss;   // 0-d. "ema": the commitment term alone, for the other one has nothing to train
  at::Tensor rows;   // (B*N, C) detached latents as compared (of unit length with normalize_codes)
};

// The codebook of one tokenizer while it is trained; owns what shipped weights do not need (counts, sums,
// ages). Not thread-safe. One process: counts are not shared between ranks.
class Quantizer {
 public:
  // Moves tokenizer's embedding in place. With "ema" it wants no gradient from now on.
  Quantizer(Tokenizer tokenizer, QuantizerConfig config);

  // Latents (B, C, h, w), float32 -> see above. The first call ever replaces the codebook by random latents
  // of the batch (unless keep_codebook() or load() came before): random codes would nearly all be dead.
  Quantized quantize(const at::Tensor& latents);
  void keep_codebook() { started_.fill_(1); }

  // After the optimizer's step: moves the codes ("ema"), ages them, revives the dead. Draws V numbers from
  // torch's default generator at each call whether codes are dead or not, so no device has to be waited for.
  //   size_v <- decay size_v + (1-decay) count_v        sum_v <- decay sum_v + (1-decay) sum of the rows that
  //   chose v code_v <- sum_v / ((size_v + eps) / (n + V eps) * n),   n = sum of sizes
  void update(const Quantized& batch);

  // Share of codes used within the last kUsageWindow updates, 0-d.
  static constexpr int64_t kUsageWindow = 20;
  at::Tensor usage() const;
  // exp(entropy) of the code frequencies of one batch, 0-d in [1, V].
  at::Tensor perplexity(const at::Tensor& ids) const;

  void save(TensorMap& out, const std::string& prefix) const;
  void load(const TensorMap& in, const std::string& prefix, const std::string& where);

 private:
  at::Tensor counts_of(const at::Tensor& flat_ids) const;
  NamedTensors state() const;

  Tokenizer tokenizer_;
  QuantizerConfig config_;
  at::Tensor size_, sum_;  // (V), (V, C)
  at::Tensor age_;         // (V) i64, updates since last use
  at::Tensor started_;     // 0-d i64, 0 until the codebook holds latents
};

}  // namespace adanat
