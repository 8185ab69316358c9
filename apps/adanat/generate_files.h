// Where the images of `adanat generate`, `adanat edit` and (their names) `adanat tokenize decode` go:
// pictures with their metadata, tokens, the trace.
#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <future>
#include <string>
#include <utility>
#include <vector>

#include "apps/adanat/generate.h"
#include "apps/pipeline/pipeline.h"
#include "core/sampling/observers.h"

namespace adanat {

// What makes the images, as their metadata tell it. Everything outlives this.
struct Making {
  const Pipeline& pipeline;
  const GenerateOptions& options;
  const TableOptions& table;
  const Schedule& schedule;
  const GenerateJob& job;
  at::ScalarType dtype;
};

// The names of the pictures: one grid, or one file per image.
class OutputNames {
 public:
  // Makes the folder. InputError: a pattern without a number, a grid too small, a place where nothing can be
  // written.
  OutputNames(const std::string& path, const std::string& grid, int64_t count, int64_t first_index);

  bool single() const { return single_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  std::filesystem::path file(int64_t i) const;  // image i of the command; the grid for every i

 private:
  std::string path_;
  int64_t first_index_, rows_ = 0, columns_ = 0;
  bool single_ = false;
};

// Writes the pictures of one batch while the next is made. The grid is written by finish. `names` and
// `making` outlive this.
class PictureFiles {
 public:
  PictureFiles(const OutputNames& names, const Making& making) : names_(names), making_(making) {}
  ~PictureFiles();
  // Images (B, 3, S, S) u8 of the request; batches come in order. Waits for those of the batch before, and
  // throws what went wrong with them.
  void add(const BatchRequest& request, const at::Tensor& images);
  // Waits; the grid shows what was added. `classes`: of all these images.
  void finish(const std::vector<int64_t>& classes);

 private:
  void wait();
  const OutputNames& names_;
  const Making& making_;
  std::vector<at::Tensor> grid_;
  std::future<void> writing_;
  int64_t added_ = 0;
};

// What --trace writes: the decisions of every step for every image.
class TraceFile {
 public:
  // `path` "" = nothing is kept or written. `prompts`: of a model of texts, else empty.
  TraceFile(std::string path, int64_t steps, std::vector<std::string> prompts);
  void add(const TraceObserver& trace, const BatchRequest& request);
  void write() const;

 private:
  std::string path_;
  std::vector<std::string> prompts_;
  Json out_;
};

// What --save-tokens writes: the tokens of all images, final and after every step.
class TokensFile {
 public:
  explicit TokensFile(std::string path);  // "" = nothing is kept or written
  void add(const at::Tensor& tokens, const TokensObserver& steps);
  void write(const ModelConfig& config, const std::vector<std::string>& prompts,
             const std::vector<int64_t>& classes) const;

 private:
  std::string path_;
  std::vector<at::Tensor> tokens_, steps_;
};

// What --preview writes: DIR/00000-step01.png, ..., the proposals of every step as pictures.
void write_previews(Pipeline& pipeline, const TokensObserver& steps, const std::filesystem::path& folder,
                    const BatchRequest& request, const GenerateJob& job);

}  // namespace adanat
