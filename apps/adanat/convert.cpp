// adanat convert: public checkpoints -> a model folder (docs/public-models.md).
#include "apps/pipeline/convert.h"

#include <ATen/core/Tensor.h>

#include "apps/adanat/cli.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"

namespace adanat {
namespace {

struct ConvertFlags {
  std::string generator, tokenizer, residual, text_encoder, class_names, config, dtype, out;
  std::vector<std::string> policies;
  int64_t heads = 0;
  bool has_heads = false, quiet = false;
};

std::optional<at::ScalarType> stored_dtype(const std::string& text) {
  if (text.empty()) return std::nullopt;
  if (text == "float32") return at::kFloat;
  if (text == "float16") return at::kHalf;
  if (text == "bfloat16") return at::kBFloat16;
  throw InputError(cat("--dtype ", text, ": must be float32, float16 or bfloat16"));
}

void run_convert(const ConvertFlags& f) {
  install_interrupt_handlers();
  set_quiet(f.quiet);
  ConvertOptions o;
  o.generator = f.generator, o.tokenizer = f.tokenizer, o.text_encoder = f.text_encoder;
  o.class_names = f.class_names, o.config = f.config, o.out = f.out;
  o.dtype = stored_dtype(f.dtype);
  o.heads = f.heads;
  if (f.has_heads && (f.heads < 1 || f.heads > 1024))
    throw InputError(cat("--heads ", f.heads, ": must be 1 to 1024"));
  for (const std::string& policy : f.policies) o.policies.push_back(parse_policy_argument(policy));
  if (!f.residual.empty()) {
    if (f.residual != "on" && f.residual != "off")
      throw InputError(cat("--policy-residual ", f.residual, ": must be on or off"));
    if (f.policies.empty()) throw InputError("--policy-residual: is about policies; give --policy as well");
    o.policy_residual = f.residual == "on";
  }
  convert(o);
  note(cat("wrote ", f.out, "; try: adanat info ", f.out));
}

}  // namespace

void add_convert(CLI::App& app) {
  auto* command = app.add_subcommand("convert", "public checkpoints -> a model folder");
  auto f = std::make_shared<ConvertFlags>();
  command->add_option("--generator", f->generator,
                      "nnet_ema.pth of AdaNAT, AutoNAT or AdaGen, safetensors, or a Hugging Face folder");
  command
      ->add_option(
          "--tokenizer", f->tokenizer,
          "the MaskGIT VQGAN (vqgan_jax_strongaug.ckpt, maskgit-vqgan-imagenet-f16-256): file or folder")
      ->required();
  command->add_option(
      "--policy", f->policies,
      "FILE:T, a policy for T steps; may be repeated. Without :T a training checkpoint says it");
  command->add_option(
      "--policy-residual", f->residual,
      "on or off: whether the policies' outputs are added to the heuristic schedule, for files that "
      "do not say (AdaNAT's default is off, AdaGen's on)");
  command->add_option("--text-encoder", f->text_encoder,
                      "Hugging Face folder of the CLIP text encoder (text-conditional generators)");
  command->add_option("--heads", f->heads, "attention heads; known for the published sizes");
  command->add_option("--class-names", f->class_names, "text file, one name a line; default: 0, 1, ...");
  command->add_option("--config", f->config, "preset with what tensors cannot tell: configs/public/*.json");
  command->add_option("--dtype", f->dtype, "float32, float16 or bfloat16; default: as the files have it");
  command->add_option("--out", f->out, "model folder to write; must not exist")->required();
  command->add_flag("--quiet", f->quiet, "no notes on stderr");
  command->footer(
      "Nothing in a file is executed. Sizes come from the tensors; what is missing or left over is named.\n"
      "Examples:\n"
      "  adanat convert --generator nnet_ema.pth --tokenizer vqgan_jax_strongaug.ckpt \\\n"
      "    --policy adanat_T8.pth:8 --config configs/public/adanat-l-256.json --out models/adanat-l-256\n"
      "  adanat convert --generator MaskGIT-L.pth --tokenizer vqgan_jax_strongaug.ckpt \\\n"
      "    --policy maskgit_policy.pth:16 --config configs/public/adagen-maskgit-l-256.json --out "
      "models/adagen-l\n"
      "  adanat convert --tokenizer maskgit-vqgan-imagenet-f16-256/ --out models/vqgan-f16");
  command->callback([f, command] {
    f->has_heads = command->count("--heads") > 0;
    run_convert(*f);
  });
}

}  // namespace adanat
