// adanat tokenize encode|decode: images <-> token files (docs/command-line.md).
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>

#include "apps/adanat/cli.h"
#include "apps/adanat/generate_files.h"
#include "apps/pipeline/pipeline.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "core/data/sequential.h"
#include "core/data/token_file.h"
#include "core/io/atomic_file.h"

namespace adanat {
namespace {

struct EncodeOptions {
  std::string model, data, output;
  bool flip = false;
  int64_t batch_size = 64;
  ComputeOptions compute;
};

void run_encode(const EncodeOptions& o) {
  install_interrupt_handlers();
  const at::Device device = o.compute.apply();
  const at::NoGradGuard no_grad;
  const AtomicFile probe(o.output);  // an unwritable place is found now, not after the work
  const ModelConfig config = read_model_config(o.model);
  Tokenizer tokenizer = open_tokenizer(o.model, config, device);
  const auto dataset = open_dataset(o.data);
  note(dataset->describe());
  SequentialReader reader(
      *dataset,
      {.batch_size = o.batch_size, .crop = config.image_size, .captions = true, .skip_broken = true});
  Progress progress("encode", dataset->size(), "images");
  // The images as they are, then all mirrored ones: the order of the rows is that of the data whatever the
  // batch.
  std::vector<at::Tensor> tokens, mirrored, classes;
  std::vector<std::string> captions;
  const auto encode = [&](const at::Tensor& images) { return tokenizer->encode(images).to(at::kInt).cpu(); };
  int64_t done = 0;
  while (const auto batch = reader.next()) {
    check_interrupt();
    const at::Tensor images = batch->images.to(device).to(at::kFloat) / 255;
    tokens.push_back(encode(images));
    if (o.flip) mirrored.push_back(encode(images.flip({3})));
    classes.push_back(batch->labels);
    captions.insert(captions.end(), batch->captions.begin(), batch->captions.end());
    progress.update(done += batch->labels.size(0));
  }
  if (reader.skipped() > 0)
    warning(cat(reader.skipped(), " images of ", o.data, " could not be read and were left out"));
  TokenFile file;
  file.tokens = at::cat(tokens), file.classes = at::cat(classes);
  file.flipped = at::zeros({file.tokens.size(0)}, at::kByte);
  if (o.flip) {
    file.tokens = at::cat({file.tokens, at::cat(mirrored)});
    file.classes = file.classes.repeat({2});
    file.flipped = at::cat({file.flipped, at::ones_like(file.flipped)});
    const std::vector<std::string> again = captions;
    captions.insert(captions.end(), again.begin(), again.end());
  }
  file.captions = std::move(captions);
  file.grid_height = file.grid_width = config.image_size / config.tokenizer->factor();
  file.vocab = config.tokenizer->codes;
  const auto hash = config.files.find("tokenizer.safetensors");
  if (hash == config.files.end())
    throw InputError(cat(o.model, ": config.json has no hash of tokenizer.safetensors"));
  file.tokenizer_hash = hash->second;
  file.class_names = dataset->class_names();
  file.dataset = dataset->describe();
  write_token_file(o.output, file);
  note(cat(o.output, ": ", file.tokens.size(0), " rows of ", file.tokens.size(1), " tokens",
           file.captions.empty() ? "" : ", with captions"));
}

struct DecodeOptions {
  std::string model, input, output;
  int64_t batch_size = 64;
  ComputeOptions compute;
};

void run_decode(const DecodeOptions& o) {
  install_interrupt_handlers();
  const at::Device device = o.compute.apply();
  const ModelConfig config = read_model_config(o.model);
  Tokenizer tokenizer = open_tokenizer(o.model, config, device);
  const SavedTokens saved = read_saved_tokens(o.input);
  const int64_t n = config.image_size / config.tokenizer->factor();
  if (saved.tokens.size(1) != n * n)
    throw InputError(cat(o.input, ": has ", saved.tokens.size(1), " tokens an image, the tokenizer of ",
                         o.model, " makes ", n * n));
  if (saved.tokens.numel() > 0 && saved.tokens.max().item<int64_t>() >= config.tokenizer->codes)
    throw InputError(cat(o.input, ": holds the id ", saved.tokens.max().item<int64_t>(),
                         ", the tokenizer of ", o.model, " has ", config.tokenizer->codes, " codes"));
  const auto own = config.files.find("tokenizer.safetensors");
  if (!saved.tokenizer_hash.empty() && own != config.files.end() && own->second != saved.tokenizer_hash)
    warning(cat(o.input, ": was made by the tokenizer ", printable(saved.tokenizer_hash.substr(0, 12)),
                ", but ", o.model, " holds ", own->second.substr(0, 12),
                "; the images will not be those that were meant"));
  const int64_t count = saved.tokens.size(0);
  if (count == 0) throw InputError(cat(o.input, ": holds no rows of tokens; there is nothing to decode"));
  const OutputNames names(o.output, /*grid=*/"", count, /*first_index=*/0);
  Progress progress("decode", count, "images");
  std::vector<at::Tensor> all;
  for (int64_t begin = 0; begin < count; begin += o.batch_size) {
    check_interrupt();
    const int64_t size = std::min(o.batch_size, count - begin);
    const at::Tensor images = decode_to_bytes(*tokenizer, saved.tokens.narrow(0, begin, size).to(device));
    if (names.single()) all.push_back(images);
    for (int64_t i = 0; !names.single() && i < size; ++i)
      write_png(names.file(begin + i), to_image(images[i]));
    progress.update(begin + size);
  }
  if (names.single()) write_png(names.file(0), make_grid(at::cat(all), names.rows(), names.columns()));
}

}  // namespace

void add_tokenize(CLI::App& app) {
  auto* command = app.add_subcommand("tokenize", "images <-> token files");
  command->require_subcommand(1);
  command->footer(
      "Examples:\n"
      "  adanat tokenize encode -m runs/tokenizer/model --data signs.tar.gz -o tokens.safetensors\n"
      "  adanat tokenize decode -m runs/tokenizer/model -i tokens.safetensors -o decoded/");
  auto* encode =
      command->add_subcommand("encode", "a dataset -> a token file, what generators are trained on");
  auto e = std::make_shared<EncodeOptions>();
  encode->add_option("-m,--model", e->model, "model folder with a tokenizer")->required();
  encode
      ->add_option("--data", e->data,
                   "dataset: folder, .tar.gz, idx, CIFAR, .tsv, shards; #split and @begin:end may follow")
      ->required();
  encode->add_option("-o,--output", e->output, "FILE.safetensors")->required();
  encode->add_flag("--flip", e->flip, "also the mirrored images");
  encode->add_option("-b,--batch-size", e->batch_size, "images encoded together")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  e->compute.add_to(*encode, false);
  encode->footer(
      "Example:\n  adanat tokenize encode -m runs/tokenizer/model --data signs.tar.gz -o tokens.safetensors");
  encode->callback([e] { run_encode(*e); });

  auto* decode = command->add_subcommand("decode", "tokens -> images; reads --save-tokens files too");
  auto d = std::make_shared<DecodeOptions>();
  decode->add_option("-m,--model", d->model, "model folder with a tokenizer")->required();
  decode->add_option("-i,--input", d->input, "token file, or what `generate --save-tokens` wrote")
      ->required();
  decode->add_option("-o,--output", d->output, "FILE.png (one grid), DIR/ or DIR/%05d.png")->required();
  decode->add_option("-b,--batch-size", d->batch_size, "images decoded together")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  d->compute.add_to(*decode, false);
  decode->footer("Example:\n  adanat tokenize decode -m models/signs -i tokens.safetensors -o out/");
  decode->callback([d] { run_decode(*d); });
}

}  // namespace adanat
