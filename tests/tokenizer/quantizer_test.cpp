#include "tokenizer/quantizer.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "support/support.h"
#include "tokenizer/patchgan.h"

namespace adanat {
namespace {

constexpr int64_t kCodes = 7, kWidth = 5;

Tokenizer tiny(bool normalize = false) {
  TokenizerConfig config;
  config.image_size = 8;
  config.channels = 4;
  config.channel_multipliers = {1, 1};
  config.residual_blocks = 1;
  config.latent_channels = kWidth;
  config.codes = kCodes;
  config.normalize_codes = normalize;
  return Tokenizer(config);
}

QuantizerConfig ema_config() {
  QuantizerConfig config;
  config.decay = 0.75;
  config.revive_after = 0;
  return config;
}

at::Tensor latents(const std::string& name, int64_t batch = 3) {
  return testing::input_float(name, {batch, kWidth, 3, 3}, 1.5);
}

TEST(Quantizer, LossAgainstItsFormula) {
  const at::Tensor z = latents("z").requires_grad_(), c = latents("c").requires_grad_();
  codebook_loss(z, c, 0.25).backward();
  const at::Tensor gap = (z - c).detach() * (2.0 / double(z.numel()));
  EXPECT_NEAR(codebook_loss(z, c, 0.25).item<double>(), 1.25 * (z - c).square().mean().item<double>(), 1e-5);
  EXPECT_CLOSE(z.grad(), 0.25 * gap, 1e-7);
  EXPECT_CLOSE(c.grad(), -gap, 1e-7);
}

TEST(Quantizer, StraightThrough) {
  const at::Tensor z = latents("z").requires_grad_(), c = latents("c").requires_grad_();
  const at::Tensor out = straight_through(z, c), upstream = latents("up");
  EXPECT_CLOSE(out, c, 1e-6);
  (out * upstream).sum().backward();
  EXPECT_CLOSE(z.grad(), upstream, 0);
  EXPECT_FALSE(c.grad().defined());
}

// Two updates with other latents, against the formulas in plain loops and float64.
TEST(Quantizer, EmaUpdateAgainstPlainReference) {
  for (const bool unit : {false, true}) {
    Tokenizer tokenizer = tiny(unit);
    {
      const at::NoGradGuard no_grad;
      tokenizer->embedding.copy_(testing::input_float("codebook", {kCodes, kWidth}, 1.0));
    }
    const QuantizerConfig config = ema_config();
    Quantizer quantizer(tokenizer, config);
    quantizer.keep_codebook();
    EXPECT_FALSE(tokenizer->embedding.requires_grad());

    std::vector<double> size(kCodes, 1.0);
    std::vector<std::vector<double>> sum(kCodes, std::vector<double>(kWidth));
    for (int64_t v = 0; v < kCodes; ++v)
      for (int64_t c = 0; c < kWidth; ++c) sum[v][c] = tokenizer->embedding[v][c].item<double>();
    for (int round = 0; round < 2; ++round) {
      const Quantized q = quantizer.quantize(latents("ema" + std::to_string(round)));
      quantizer.update(q);
      std::vector<double> count(kCodes, 0.0);
      std::vector<std::vector<double>> total(kCodes, std::vector<double>(kWidth, 0.0));
      const at::Tensor ids = q.ids.flatten();
      for (int64_t r = 0; r < ids.size(0); ++r) {
        const auto v = size_t(ids[r].item<int64_t>());
        count[v] += 1;
        for (int64_t c = 0; c < kWidth; ++c) total[v][size_t(c)] += q.rows[r][c].item<double>();
      }
      double n = 0;
      for (size_t v = 0; v < kCodes; ++v) n += size[v] = 0.75 * size[v] + 0.25 * count[v];
      at::Tensor expected = at::empty({kCodes, kWidth}, at::kDouble);
      for (size_t v = 0; v < kCodes; ++v) {
        const double smoothed = (size[v] + config.epsilon) / (n + double(kCodes) * config.epsilon) * n;
        for (size_t c = 0; c < kWidth; ++c) {
          sum[v][c] = 0.75 * sum[v][c] + 0.25 * total[v][c];
          expected[int64_t(v)][int64_t(c)] = sum[v][c] / smoothed;
        }
      }
      if (unit) expected = expected / expected.norm(2, 1, true);
      EXPECT_CLOSE(tokenizer->embedding, expected, 1e-5) << "round " << round << ", unit " << unit;
    }
  }
}

TEST(Quantizer, EmaLossIsTheCommitmentTermAlone) {
  Tokenizer tokenizer = tiny();
  Quantizer quantizer(tokenizer, ema_config());
  const at::Tensor z = latents("z").requires_grad_();
  const Quantized q = quantizer.quantize(z);
  EXPECT_NEAR(q.loss.item<double>(), 0.25 * (q.codes - z).square().mean().item<double>(), 1e-6);
  q.loss.backward();
  EXPECT_TRUE(z.grad().defined());
}

TEST(Quantizer, NormalizedCodes) {
  Tokenizer tokenizer = tiny(true);
  Quantizer quantizer(tokenizer, ema_config());
  const Quantized q = quantizer.quantize(latents("z") * 9);
  EXPECT_CLOSE(q.rows.norm(2, 1), at::ones({27}), 1e-5);
  EXPECT_CLOSE(q.codes.norm(2, 1), at::ones({3, 3, 3}), 1e-5);
  EXPECT_CLOSE(q.ids, tokenizer->quantize_ids(latents("z")), 0);
  quantizer.update(q);
  EXPECT_CLOSE(tokenizer->embedding.norm(2, 1), at::ones({kCodes}), 1e-5);
}

// Seven latents for seven codes: the first batch makes each of them a code, so nothing is lost.
TEST(Quantizer, StartsFromLatents) {
  Tokenizer tokenizer = tiny();
  Quantizer quantizer(tokenizer, ema_config());
  const at::Tensor z = testing::input_float("start", {1, kWidth, 7, 1}, 1.0);
  const Quantized q = quantizer.quantize(z);
  EXPECT_CLOSE(q.codes, z, 1e-6);
  EXPECT_NEAR(quantizer.perplexity(q.ids).item<double>(), double(kCodes), 1e-4);
  Quantizer few(tokenizer, ema_config());
  EXPECT_CLOSE(few.quantize(z.slice(2, 0, 3)).codes, z.slice(2, 0, 3),
               10);  // fewer rows than codes: no error
}

TEST(Quantizer, RevivesDeadCodes) {
  for (const char* kind : {"ema", "gradient"}) {
    Tokenizer tokenizer = tiny();
    {
      const at::NoGradGuard no_grad;
      tokenizer->embedding.fill_(100);  // far from every latent
      tokenizer->embedding[3].zero_();  // takes all
    }
    QuantizerConfig config;
    config.codebook = kind;
    config.revive_after = 4;
    Quantizer quantizer(tokenizer, config);
    quantizer.keep_codebook();
    at::Tensor last_rows;
    for (int i = 0; i < 4; ++i) {
      const Quantized q = quantizer.quantize(latents("dead" + std::to_string(i)));
      EXPECT_CLOSE(q.ids, at::full_like(q.ids, 3), 0) << kind << " " << i;
      EXPECT_NEAR(quantizer.perplexity(q.ids).item<double>(), 1.0, 1e-5);
      quantizer.update(q);
      last_rows = q.rows;
    }
    // Every dead code is now a row of the last batch.
    const at::Tensor distance = at::cdist(tokenizer->embedding.detach(), last_rows).amin(1);
    for (int64_t v = 0; v < kCodes; ++v)
      EXPECT_TRUE(v == 3 || distance[v].item<double>() < 1e-3) << kind << " code " << v;
    const at::Tensor ids = quantizer.quantize(latents("dead3")).ids;
    EXPECT_GT(std::get<0>(at::_unique(ids)).numel(), 3) << kind;
    EXPECT_NEAR(quantizer.usage().item<double>(), 1.0, 1e-6);
  }
}

TEST(Quantizer, RevivalFollowsTheRandomState) {
  const auto run = [] {
    at::manual_seed(5);
    Tokenizer tokenizer = tiny();
    QuantizerConfig config;
    config.revive_after = 1;
    Quantizer quantizer(tokenizer, config);
    for (int i = 0; i < 3; ++i) quantizer.update(quantizer.quantize(latents("state" + std::to_string(i), 1)));
    return tokenizer->embedding.detach().clone();
  };
  EXPECT_CLOSE(run(), run(), 0);
}

TEST(Quantizer, SavesAndLoads) {
  Tokenizer a = tiny(), b = tiny();
  Quantizer first(a, ema_config()), second(b, ema_config());
  first.update(first.quantize(latents("s0")));
  TensorMap saved;
  first.save(saved, "q.");
  for (auto& [name, tensor] : saved) tensor = tensor.clone();
  second.load(saved, "q.", "memory");
  {
    const at::NoGradGuard no_grad;
    b->embedding.copy_(a->embedding);
  }
  first.update(first.quantize(latents("s1")));
  second.update(second.quantize(latents("s1")));
  EXPECT_CLOSE(a->embedding, b->embedding, 0);
  saved.erase("q.age");
  EXPECT_THROW(second.load(saved, "q.", "memory"), InputError);
}

TEST(Quantizer, ConfigIsChecked) {
  const auto refused = [](auto change) {
    QuantizerConfig config;
    change(config);
    EXPECT_THROW(config.validate(), InputError);
  };
  refused([](QuantizerConfig& c) { c.codebook = "sgd"; });
  refused([](QuantizerConfig& c) { c.decay = 1; });
  refused([](QuantizerConfig& c) { c.epsilon = 0; });
  refused([](QuantizerConfig& c) { c.commitment = -1; });
  refused([](QuantizerConfig& c) { c.revive_after = -1; });
}

// ---- the adversary
// --------------------------------------------------------------------------------------------------

TEST(PatchGan, Shapes) {
  for (const int64_t layers : {1, 2, 3}) {
    PatchGanConfig config;
    config.width = 4;
    config.layers = layers;
    PatchDiscriminator gan(config);
    for (const int64_t size : {28, 32, 33}) {
      const at::Tensor images = testing::input_u("patch", {2, 3, size, size});
      const int64_t side = (size >> layers) - 2;
      const at::Tensor logits = gan->forward(images);
      EXPECT_EQ(logits.sizes(), at::IntArrayRef({2, 1, side, side})) << layers << " " << size;
      EXPECT_CLOSE(gan->forward(images.slice(0, 1, 2)), logits.slice(0, 1, 2),
                   1e-5);  // batch mates do not matter
    }
    EXPECT_THROW(gan->forward(at::rand({1, 3, (3 << layers) - 1, 40})), InputError);
  }
}

TEST(PatchGan, HingeLosses) {
  const at::Tensor real = at::tensor({2.0f, 0.5f, -1.0f}), fake = at::tensor({-3.0f, 0.0f, 1.0f});
  EXPECT_NEAR(hinge_discriminator_loss(real, fake).item<double>(),
              0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3), 1e-6);
  EXPECT_NEAR(hinge_generator_loss(fake).item<double>(), 2.0 / 3, 1e-6);
}

TEST(PatchGan, AdaptiveWeight) {
  const at::Tensor nll = at::tensor({3.0f, 4.0f}), gan = at::tensor({0.0f, 2.0f});
  EXPECT_NEAR(adaptive_weight(nll, gan, 0.8).item<double>(), 0.8 * 5 / (2 + 1e-4), 1e-5);
  EXPECT_NEAR(adaptive_weight(nll * 1e6, gan * 0, 0.5).item<double>(), 0.5 * 1e4, 1e-2);  // clamped
  EXPECT_EQ(adaptive_weight(nll * 0, gan, 0.8).item<double>(), 0);
  EXPECT_FALSE(adaptive_weight(nll.requires_grad_(), gan, 1).requires_grad());
}

// The shortcut of the recipe - gradient at the image first, then one layer further - is the gradient of the
// loss itself.
TEST(PatchGan, AdaptiveWeightThroughTheImage) {
  Tokenizer tokenizer = tiny();
  PatchGanConfig config;
  config.width = 4;
  config.layers = 1;
  PatchDiscriminator gan(config);
  const at::Tensor target = testing::input_u("target", {2, 3, 8, 8});
  const at::Tensor made = tokenizer->decode(testing::input_ids("ids", {2, 16}, kCodes));
  const at::Tensor& last = tokenizer->decoder->last_weight();
  const auto grad = [&](const at::Tensor& of, const at::Tensor& at, std::vector<at::Tensor> up) {
    return torch::autograd::grad({of}, {at}, up, true)[0];
  };
  const at::Tensor direct = adaptive_weight(grad(at::l1_loss(made, target), last, {}),
                                            grad(-gan->forward(made).mean(), last, {}), 0.8);
  const at::Tensor leaf = made.detach().requires_grad_();
  const at::Tensor nll = grad(at::l1_loss(leaf, target), leaf, {}),
                   adv = grad(-gan->forward(leaf).mean(), leaf, {});
  EXPECT_CLOSE(adaptive_weight(grad(made, last, {nll}), grad(made, last, {adv}), 0.8), direct, 1e-4);
}

}  // namespace
}  // namespace adanat
