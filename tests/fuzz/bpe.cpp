#include "core/text/bpe.h"

#include <algorithm>

#include "fuzz/fuzz.h"

// vocab.json, merges.txt and a text, with a zero byte between them.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return adanat::fuzz::run_within(adanat::fuzz::memory_for(size), [&] {
    std::string_view rest(reinterpret_cast<const char*>(data), size), parts[3];
    for (std::string_view& part : parts) {
      part = rest.substr(0, rest.find('\0'));
      rest.remove_prefix(std::min(part.size() + 1, rest.size()));
    }
    const adanat::BpeSpecials specials{.start = "<", .end = ">", .pad = "!", .unknown = ">"};
    const auto tokenizer = adanat::BpeTokenizer::parse(parts[0], parts[1], specials, "vocab", "merges");
    const auto padded = tokenizer.encode_padded(parts[2], 7);
    if (padded.ids.size() != 7 || padded.ids[0] != tokenizer.start_id()) std::abort();
    for (const int64_t id : padded.ids)
      if (id < 0 || id >= tokenizer.id_limit()) std::abort();
    (void)tokenizer.text_of(tokenizer.encode(parts[2]));
  });
}
