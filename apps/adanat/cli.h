// The subcommands of `adanat`, and what they share.
#pragma once
#include <ATen/core/Tensor.h>

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace adanat {

// Each adds its subcommand with flags, help and callback. Callbacks throw Error for anything that goes wrong.
void add_generate(CLI::App& app);
void add_edit(CLI::App& app);
void add_train(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_eval(CLI::App& app);
void add_info(CLI::App& app);
void add_search(CLI::App& app);
void add_convert(CLI::App& app);
void add_bench(CLI::App& app);

// What the parser alone would let through, for every option of `app` and its subcommands: an empty value, an
// integer beyond 64 bits (which it cuts), a leading 0 that it reads as octal. Call it after the last option
// was added.
void check_values(CLI::App& app);

// Where a command computes: --device, --dtype, --threads, --quiet.
struct ComputeOptions {
  std::string device = "auto";
  std::string dtype = "auto";
  int64_t threads = 0;
  bool quiet = false;

  void add_to(CLI::App& command, bool with_dtype = true);
  // Applies threads and quiet; returns the device.
  at::Device apply() const;
};

}  // namespace adanat
