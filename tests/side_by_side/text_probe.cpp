// What the program makes of texts, for compare_text.py:
//   text_probe tokens FOLDER TEXTS.json                     ids of each text, a JSON list of lists, on stdout
//   text_probe padded FOLDER TEXTS.json LENGTH [PAD]        the same with start, end and padding
//   text_probe states FOLDER TEXTS.json OUT.safetensors     ids, states, pooled
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "core/base/error.h"
#include "core/io/atomic_file.h"
#include "core/text/clip.h"

int main(int argc, char** argv) try {
  using namespace adanat;
  const std::string what = argc > 3 ? argv[1] : "";
  if (what != "tokens" && !(what == "padded" && argc > 4) && !(what == "states" && argc > 4)) return 2;
  std::vector<std::string> texts;
  for (const auto& text : nlohmann::json::parse(read_file(argv[3]))) texts.push_back(text.get<std::string>());
  if (what == "states") {
    const ClipTextEncoder encoder = ClipTextEncoder::open(argv[2], at::kCPU);
    const ClipTextOutput out = encoder.encode(texts, 3);
    write_tensors(argv[4],
                  {{"ids", encoder.tokenize(texts)}, {"states", out.states}, {"pooled", out.pooled}});
    return 0;
  }
  const BpeTokenizer tokenizer = BpeTokenizer::open(argv[2], argc > 5 ? argv[5] : "");
  nlohmann::json ids = nlohmann::json::array();
  for (const std::string& text : texts)
    ids.push_back(what == "tokens" ? tokenizer.encode(text)
                                   : tokenizer.encode_padded(text, std::stoll(argv[4])).ids);
  std::printf("%s\n", ids.dump().c_str());
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "text_probe: %s\n", e.what());
  return 1;
}
