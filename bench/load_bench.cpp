// How long a converted folder of AdaNAT-L's size (194 M + 55 M + 12 M parameters) takes to load from a warm
// disk, and the anonymous memory that it takes: the bars are 3 s, and 1.2 times the weights in the type they
// run in (the tokenizer and the policy always run in float32). And how long one image of 8 steps takes: the
// bar is 10 s on two cores. Each case in a process of its own; one JSON line each:
//   load_s     opening the folder and its policy for 8 steps
//   anonymous  most anonymous memory (RssAnon, looked at every millisecond) above that of a process that has
//              loaded LibTorch, over the weights in their target types
//   image_s    from opening the folder to the pixels of the first image, by the policy, in float32
//
// Measured on two cores of an EPYC with AVX-512 beside other work: float32 1.2 to 2.5 s and 1.003, bfloat16
// 0.8 to 1.4 s and 1.004 (six runs each). With weights drawn at random first and converted afterwards, as it
// was before core/nn/undrawn.h: 5.6 to 6.1 s and 1.003, 7.0 to 9.5 s and 1.53 (three runs each).
//
//   load_bench [FOLDER]   from the project's folder; FOLDER (default: the system's temporary one) needs room
//                         for 2 GB
#include <ATen/ATen.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "apps/pipeline/convert.h"
#include "apps/pipeline/pipeline.h"
#include "bench/memory.h"
#include "core/base/log.h"
#include "core/generator/shapes.h"
#include "core/nn/device.h"
#include "policy/policy_schedule.h"
#include "tokenizer/shapes.h"

namespace {

using namespace adanat;
namespace fs = std::filesystem;

void write_random(const fs::path& file, const ShapeMap& shapes) {
  TensorMap tensors;
  for (const auto& [name, shape] : shapes) tensors.emplace(name, at::empty(shape).uniform_(-0.05, 0.05));
  write_tensors(file, tensors);
}

// What torch-less tools would bring: safetensors of the public layouts.
void write_converted(const fs::path& work) {
  ConvertOptions o;
  o.generator = work / "generator.safetensors", o.tokenizer = work / "vqgan.safetensors";
  o.config = "configs/public/adanat-l-256.json";
  o.out = work / "model";
  write_random(o.generator, generator_shapes(GeneratorConfig{}));
  TokenizerConfig tokenizer;
  tokenizer.shortcut_from = "hidden";
  write_random(o.tokenizer, tokenizer_shapes(tokenizer));
  TensorMap actor;
  PolicyNetwork network(PolicyNetworkConfig{}, 4);
  for (const auto& [name, tensor] : module_state(*network)) actor.emplace("actor." + name, tensor);
  write_tensors(work / "policy.safetensors", actor);
  o.policies = {{work / "policy.safetensors", 8}};
  convert(o);
  for (const char* source : {"generator.safetensors", "vqgan.safetensors", "policy.safetensors"})
    fs::remove(work / source);
}

double weights_mib(const torch::nn::Module& module) {
  double bytes = 0;
  for (const auto& tensor : module.parameters()) bytes += double(tensor.nbytes());
  return bytes / (1 << 20);
}

void measure(const fs::path& folder, at::ScalarType dtype) {
  set_threads(0);
  at::ones({64, 64}).mm(at::ones({64, 64}));  // LibTorch's own
  const double before = memory_mib("RssAnon");
  MostAnonymous most;
  const double began = monotonic_seconds();
  Pipeline pipeline = Pipeline::open(folder, at::kCPU, dtype);
  const PolicyFile policy = read_policy(*policy_for(folder, 8));
  const double seconds = monotonic_seconds() - began;
  const double anonymous = most.stop_mib() - before;
  const double weights =
      weights_mib(pipeline.generator()) + weights_mib(pipeline.tokenizer()) + weights_mib(*policy.actor);
  const Json line = {{"case", "load"},
                     {"dtype", at::toString(dtype)},
                     {"threads", at::get_num_threads()},
                     {"load_s", seconds},
                     {"anonymous_mib", anonymous},
                     {"weights_mib", weights},
                     {"anonymous", anonymous / weights}};
  std::printf("%s\n", line.dump().c_str());
}

void measure_image(const fs::path& folder) {
  set_threads(0);
  const double began = monotonic_seconds();
  Pipeline pipeline = Pipeline::open(folder, at::kCPU, at::kFloat);
  pipeline.generate({.classes = {207}}, *pipeline.schedule("adaptive", 8, {}));
  const Json line = {{"case", "image"},
                     {"dtype", "Float"},
                     {"threads", at::get_num_threads()},
                     {"image_s", monotonic_seconds() - began}};
  std::printf("%s\n", line.dump().c_str());
}

}  // namespace

int main(int argc, char** argv) {
  std::printf("{\"platform\":\"%s\"}\n", platform_line().c_str());
  std::fflush(stdout);
  const bool given = argc > 1 && argv[1][0] != '-';
  const fs::path work =
      (given ? fs::path(argv[1]) : fs::temp_directory_path()) / cat("adanat-load-bench-", ::getpid());
  fs::create_directories(work);
  int failed = 0;
  const auto in_child = [&](auto&& what) {
    const pid_t child = fork();
    if (child == 0) {
      int code = 0;
      try {
        what();
      } catch (const std::exception& e) {
        std::fprintf(stderr, "load_bench: %s\n", e.what());
        code = 1;
      }
      std::fflush(stdout);
      _exit(code);
    }
    int status = 0;
    waitpid(child, &status, 0);
    failed |= status;
  };
  in_child([&] { write_converted(work); });
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (int i = 0; i < 3; ++i)
      in_child([&] { measure(work / "model", dtype); });  // the first warms the disk
  for (int i = 0; i < 3; ++i) in_child([&] { measure_image(work / "model"); });
  fs::remove_all(work);
  return failed == 0 ? 0 : 1;
}
