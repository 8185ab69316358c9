#include "core/generator/generator_init.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/text.h"

namespace adanat {
namespace {

constexpr const char* kClassRows = "context_embed.word_embeddings.weight";  // (classes + 1, D)

template <class T>
void require_same(const GeneratorInit& init, const char* key, const T& has, const T& wanted,
                  const char* advice) {
  if (has != wanted)
    throw InputError(
        cat(init.where, ": its generator has ", key, " ", has, ", this run wants ", wanted, "; ", advice));
}

std::vector<std::string> names_or_numbers(const std::vector<std::string>& names, int64_t count) {
  if (!names.empty()) return names;
  std::vector<std::string> numbers;
  for (int64_t i = 0; i < count; ++i) numbers.push_back(std::to_string(i));
  return numbers;
}

// The class embedding for the classes `wanted`, from that for the classes `old`.
at::Tensor class_rows(const at::Tensor& rows, const std::vector<std::string>& old,
                      const std::vector<std::string>& wanted, const std::string& where) {
  const auto before = int64_t(old.size()), after = int64_t(wanted.size());
  const at::Tensor from = rows.to(at::kFloat), mean = from.narrow(0, 0, before).mean(0);
  at::Tensor out = at::empty({after + 1, from.size(1)}, from.options());
  std::string fresh;
  int64_t kept = 0;
  for (int64_t i = 0; i < after; ++i) {
    const auto found = std::find(old.begin(), old.end(), wanted[size_t(i)]);
    if (found != old.end()) {
      out[i].copy_(from[found - old.begin()]);
      ++kept;
      continue;
    }
    out[i].copy_(mean);
    const int64_t seen = i - kept;  // new ones before this
    if (seen < 8) fresh += (seen == 0 ? ": " : ", ") + printable(wanted[size_t(i)]);
    if (seen == 8) fresh += ", ...";
  }
  out[after].copy_(from[before]);
  note(cat(where, ": ", kept, " of ", after, " classes keep what it knows of them, ", after - kept,
           " are new", fresh));
  return out;
}

}  // namespace

TensorMap initial_weights(const GeneratorInit& init, const GeneratorConfig& config,
                          const std::vector<std::string>& class_names, const std::string& tokenizer_hash) {
  constexpr const char* kSizes = "leave it out of the config, --init brings it";
  constexpr const char* kTokens = "give weights that were trained on tokens of the same tokenizer";
  require_same(init, "width", init.config.width, config.width, kSizes);
  require_same(init, "depth", init.config.depth, config.depth, kSizes);
  require_same(init, "heads", init.config.heads, config.heads, kSizes);
  require_same(init, "condition", init.config.condition, config.condition, "give weights of that kind");
  if (config.condition == "text") {
    constexpr const char* kText = "give weights trained with the same text encoder";
    require_same(init, "text_width", init.config.text_width, config.text_width, kText);
    require_same(init, "text_tokens", init.config.text_tokens, config.text_tokens, kText);
  }
  require_same(init, "codes", init.config.codes, config.codes, kTokens);
  require_same(init, "grid_height", init.config.grid_height, config.grid_height, kTokens);
  require_same(init, "grid_width", init.config.grid_width, config.grid_width, kTokens);
  if (init.tokenizer_hash != tokenizer_hash)
    throw InputError(
        cat(init.where, ": its generator knows the tokens of the tokenizer ",
            init.tokenizer_hash.empty() ? "(none in that folder)" : init.tokenizer_hash.substr(0, 12),
            ", the token file is of ", tokenizer_hash.substr(0, 12), "; ", kTokens));
  TensorMap weights = init.weights;
  if (config.condition != "class") return weights;
  const auto old = names_or_numbers(init.class_names, init.config.classes),
             wanted = names_or_numbers(class_names, config.classes);
  if (old == wanted) return weights;
  const auto rows = weights.find(kClassRows);
  // A map that lacks it is for load_module_state to explain.
  if (rows != weights.end() && rows->second.dim() == 2 && rows->second.size(0) == int64_t(old.size()) + 1)
    rows->second = class_rows(rows->second, old, wanted, init.where);
  return weights;
}

}  // namespace adanat
