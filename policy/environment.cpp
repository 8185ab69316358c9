#include "policy/environment.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "core/base/log.h"
#include "core/nn/device.h"

namespace adanat {

PolicyEnvironment::PolicyEnvironment(PolicyParts parts, std::shared_ptr<const ImageDataset> data,
                                     EnvironmentOptions options)
    : parts_(std::move(parts)), data_(std::move(data)), options_(options) {
  if (takes_texts() != parts_.texts.has_value())
    throw RunError("train policy: encoded captions are for generators of texts, and these need them");
  if (takes_texts()) {
    labels_ = caption_rows();
    return;
  }
  const std::vector<std::string> names = data_->class_names();
  if (int64_t(names.size()) != sizes().classes)
    throw InputError(cat(data_->describe(), ": has ", names.size(), " classes, the generator ",
                         sizes().classes, "; give the data it was trained on"));
  for (size_t i = 0; i < std::min(names.size(), parts_.class_names.size()); ++i)
    if (names[i] != parts_.class_names[i])
      throw InputError(cat(data_->describe(), ": its class ", i, " is \"", names[i],
                           "\", the generator's is \"", parts_.class_names[i],
                           "\"; give the data it was trained on"));
  if (!options_.classes_of_data) return;
  labels_ = at::empty({data_->size()}, at::kLong);
  for (int64_t i = 0; i < data_->size(); ++i) labels_.mutable_data_ptr<int64_t>()[i] = data_->label(i);
  labels_ = labels_.to(device());
}

at::TensorOptions PolicyEnvironment::long_options() const {
  return at::TensorOptions().dtype(at::kLong).device(device());
}

at::Tensor PolicyEnvironment::arange(int64_t begin, int64_t count) const {
  return at::arange(begin, begin + count, long_options());
}

at::Tensor PolicyEnvironment::caption_rows() const {
  if (!data_->has_captions())
    throw InputError(cat(data_->describe(), ": has no captions, but the generator makes images from texts"));
  std::vector<std::string> captions;
  int64_t broken = 0;
  for (int64_t i = 0; i < data_->size(); ++i) {
    try {
      captions.push_back(data_->caption(i));
    } catch (const InputError&) {
      captions.emplace_back();
      ++broken;
    }
  }
  if (broken > 0) warning(cat(data_->describe(), ": ", broken, " captions are broken and count as empty"));
  return parts_.texts->rows_of(captions).to(device());
}

at::Tensor PolicyEnvironment::spread(const at::Tensor& index, int64_t count) const {
  return labels_.defined() ? labels_.index_select(0, (index * data_->size()).div(count, "trunc"))
                           : index.remainder(sizes().classes);
}

at::Tensor PolicyEnvironment::in_turn(const at::Tensor& index, int64_t count, int64_t classes) const {
  return takes_texts() ? spread(index, count) : index.remainder(classes);
}

at::Tensor PolicyEnvironment::classes_of(const Batch& batch) const {
  return takes_texts() ? labels_.index_select(0, sent_to(device(), batch.indices))
                       : sent_to(device(), batch.labels);
}

at::Tensor PolicyEnvironment::reward_condition(const at::Tensor& classes) const {
  return parts_.texts ? parts_.texts->pooled(classes.cpu()).to(device()).to(at::kFloat) : classes;
}

SamplerStart PolicyEnvironment::start_of(const at::Tensor& classes, int64_t seed,
                                         const at::Tensor& index) const {
  if (!parts_.texts) return plain_start(*parts_.generator, classes, seed, index);
  const auto states = [&](const at::Tensor& rows) {
    return parts_.texts->states(rows.cpu()).to(device()).to(at::kFloat);
  };
  const TextConditions texts{states(classes), states(at::zeros({1}, at::kLong))};
  return plain_start(*parts_.generator, texts, at::arange(classes.size(0), at::kLong), seed, index);
}

at::Tensor PolicyEnvironment::decode(const at::Tensor& tokens) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < tokens.size(0); begin += options_.decode_batch)
    parts.push_back(parts_.tokenizer->decode(
        tokens.narrow(0, begin, std::min(options_.decode_batch, tokens.size(0) - begin))));
  return at::cat(parts).to(at::kFloat).clamp(0, 1).contiguous();
}

at::Tensor PolicyEnvironment::real_images(const at::Tensor& bytes) {
  const at::Tensor images = sent_to(device(), bytes).to(at::kFloat) / 255;
  if (!options_.reals_are_reconstructions) return images;
  const at::NoGradGuard no_grad;
  return decode(parts_.tokenizer->encode(images));
}

void PolicyEnvironment::show_real_images(Reward& reward) {
  const int64_t wanted = reward.wants_real();
  if (wanted == 0) return;
  LoaderOptions options;
  options.image_size = image_size();
  options.threads = options_.threads;
  options.seed = options_.seed + 1;
  options.batch_size = std::min<int64_t>({options_.decode_batch, wanted, data_->size()});
  options.drop_last = false;
  Loader loader(data_, options);
  for (int64_t i = 0, left = wanted; left > 0 && i < loader.batches_per_epoch(); ++i) {
    const at::Tensor images = loader.batch(i).images;
    reward.observe_real(real_images(images.narrow(0, 0, std::min(left, images.size(0)))));
    left -= images.size(0);
  }
}

}  // namespace adanat
