// Procedural weights in the layouts that are published: what tests of `convert` begin with.
#pragma once
#include "core/generator/shapes.h"
#include "core/io/atomic_file.h"
#include "support/pth_writer.h"
#include "support/small_generator.h"
#include "support/support.h"
#include "tokenizer/shapes.h"

namespace adanat::testing {

inline TensorMap procedural_weights(const ShapeMap& shapes) {
  TensorMap out;
  for (const auto& [name, shape] : shapes) out.emplace(name, procedural_weight(name, shape));
  return out;
}

// A tokenizer of factor 2^(levels-1) with tiny layers, in the public form (shortcut_from hidden).
inline TokenizerConfig tiny_tokenizer_config(int64_t codes, std::vector<int64_t> multipliers = {1, 1, 2},
                                             int64_t image_size = 16) {
  TokenizerConfig config;
  config.image_size = image_size;
  config.channels = 8;
  config.channel_multipliers = std::move(multipliers);
  config.residual_blocks = 1;
  config.latent_channels = 6;
  config.codes = codes;
  config.shortcut_from = "hidden";
  return config;
}

// Names and sizes of a published policy's actor, without "actor.": an independent list.
inline ShapeMap published_actor_shapes(int64_t width, int64_t hidden, int64_t channels, int64_t mlp,
                                       int64_t flat, int64_t outputs = 4) {
  ShapeMap s = {{"t_embedder.mlp.0.weight", {hidden, 256}},
                {"t_embedder.mlp.0.bias", {hidden}},
                {"t_embedder.mlp.2.weight", {hidden, hidden}},
                {"t_embedder.mlp.2.bias", {hidden}},
                {"adaLN1.adaLN_modulation.1.weight", {2 * hidden, hidden}},
                {"adaLN1.adaLN_modulation.1.bias", {2 * hidden}},
                {"adaLN2.adaLN_modulation.1.weight", {2 * mlp, hidden}},
                {"adaLN2.adaLN_modulation.1.bias", {2 * mlp}},
                {"adaLN3.adaLN_modulation.1.weight", {2 * hidden, hidden}},
                {"adaLN3.adaLN_modulation.1.bias", {2 * hidden}},
                {"dw_conv.weight", {hidden, 1, 3, 3}},
                {"dw_conv.bias", {hidden}},
                {"pw_conv.weight", {channels, hidden, 1, 1}},
                {"pw_conv.bias", {channels}},
                {"linear1.weight", {mlp, flat}},
                {"linear1.bias", {mlp}},
                {"linear2.weight", {hidden, mlp}},
                {"linear2.bias", {hidden}},
                {"linear3.weight", {outputs, hidden}},
                {"linear3.bias", {outputs}}};
  if (width != hidden) s["x_embedder.weight"] = {hidden, width}, s["x_embedder.bias"] = {hidden};
  return s;
}

// The weights that the golden file policy has for "actor.": names with the prefix are what is filled.
inline TensorMap procedural_actor(const ShapeMap& shapes, const std::string& prefix = "actor.") {
  TensorMap out;
  for (const auto& [name, shape] : shapes) out.emplace(name, procedural_weight(prefix + name, shape));
  return out;
}

// AdaNAT's training checkpoint: {"model": policy, policy_old (actor and critic), "discriminator",
// "optimizer", "args": Namespace, counters}. `acting` is policy_old's actor; the other one is filled with
// something else.
inline PthValue policy_checkpoint(const TensorMap& acting, const PthValue::Items& args) {
  PthValue model = PthValue::dict(PthValue::Items{});
  for (const auto& [name, tensor] : acting) {
    model.items.emplace_back("policy.actor." + name, PthValue::of(tensor + 1));
    model.items.emplace_back("policy.critic." + name, PthValue::of(tensor - 1));
    model.items.emplace_back("policy_old.actor." + name, PthValue::of(tensor));
    model.items.emplace_back("policy_old.critic." + name, PthValue::of(tensor - 2));
  }
  return PthValue::dict(
      {{"model", model},
       {"discriminator", PthValue::dict({{"heads.0.cls.bias", PthValue::of(at::ones({2}))}})},
       {"optimizer", PthValue::dict({{"state", PthValue::dict(PthValue::Items{})}})},
       {"args", PthValue::ns(args)},
       {"global_step", PthValue::of(int64_t{1000})}});
}

inline PthValue::Items policy_args(int64_t heu, int64_t steps) {
  return {{"seed", PthValue::of(int64_t{1234})},
          {"lr", PthValue::of(1e-5)},
          {"heu", PthValue::of(heu)},
          {"gen_steps", PthValue::of(steps)},
          {"upd_set", PthValue::list({"manual_gen_ratios", "manual_temp", "manual_samp_temp", "manual_cfg"})},
          {"resume", PthValue{}}};
}

}  // namespace adanat::testing
