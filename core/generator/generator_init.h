// Where a generator's training may start: the weights of another one, for other classes too.
#pragma once
#include <string>
#include <vector>

#include "core/generator/transformer.h"
#include "core/nn/tensor_file.h"

namespace adanat {

struct GeneratorInit {
  std::string where;                     // for messages: "--init models/signs"
  GeneratorConfig config;                // sizes of the weights
  std::vector<std::string> class_names;  // of its classes; empty: their numbers
  std::string tokenizer_hash;            // of the tokenizer whose tokens it knows
  TensorMap weights;                     // as GeneratorImpl names them, any float type
};

// The weights for a generator of `config` that learns `class_names` (empty: the numbers of config.classes)
// from tokens of the tokenizer `tokenizer_hash`.
//
// The same classes in the same order: the weights as they are. Other classes: a class keeps its row of the
// class embedding by its name; a class that is new starts from the mean of the old classes' rows; the row of
// the empty condition stays the last. A note says how many are kept and which are new.
//
// Why the mean: the digits model under ten new names, loss on 400 held-out images before and after 40 updates
// of 32 images (one run each): mean 3.14, 2.93; rows as in a new model (normal, 0.02) 3.09, 2.92; the row of
// the empty condition 2.99, 3.02 (so long a vector hardly turns); the classes' own rows 2.69 before. The mean
// draws nothing at random.
//
// InputError naming `where`, the key and both sides for what no row can mend: another width, depth or number
// of heads, another tokenizer, codebook or grid, another kind of condition.
TensorMap initial_weights(const GeneratorInit& init, const GeneratorConfig& config,
                          const std::vector<std::string>& class_names, const std::string& tokenizer_hash);

}  // namespace adanat
