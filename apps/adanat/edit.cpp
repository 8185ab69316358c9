// adanat edit: inpaint, outpaint or re-imagine a given image (docs/editing.md).
#include <cstdio>
#include <filesystem>
#include <optional>

#include "apps/adanat/generate.h"
#include "apps/pipeline/editor.h"
#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/io/atomic_file.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

constexpr uint64_t kMaxFile = uint64_t{512} << 20;  // of a picture or mask

struct EditOptions {
  GenerateOptions generate;
  std::string image, mask, box, expand;
  std::optional<double> strength;
  int64_t dilate = 0;
  bool paste_back = false;
};

// What is asked for, as far as it can be said without the model, and what it was asked with.
class EditJob : public GenerateJob {
 public:
  explicit EditJob(const EditOptions& o)
      : paste_back_(o.paste_back), classes_in_turn_(o.generate.classes.empty()) {
    image_ = load("image", o.image);
    request_.dilate = o.dilate;
    request_.strength = o.strength.value_or(1);
    if (!o.mask.empty()) {
      request_.mask = mask_of_image(load("mask", o.mask));
      request_.mask_name = o.mask;
    }
    if (!o.box.empty()) {
      const Box box = parse_box(o.box);
      request_.box = box;
      said_["box"] = {box.left, box.top, box.width, box.height};
    }
    if (!o.expand.empty()) {
      const Border border = parse_border(o.expand);
      request_.border = border;
      said_["expand"] = {border.left, border.top, border.right, border.bottom};
    }
    said_["dilate"] = o.dilate;
    said_["strength"] = request_.strength;
    said_["paste_back"] = o.paste_back;
  }

  std::string verb() const override { return "edit"; }

  void prepare(Pipeline& pipeline) override {
    editor_.emplace(pipeline, image_, request_);
    const EditPlan& plan = editor_->plan();
    if (classes_in_turn_ && !pipeline.config().from_texts())
      note("no --class says what the image is to show: all classes in turn");
    said_["tokens"] = plan.cells.size();
    said_["tokens_remade"] = plan.remade();
    const std::string size = cat(plan.image.width, "x", plan.image.height);
    if (request_.border)
      note(cat("the enlarged canvas is scaled to the model's ", size, " pixels"));
    else if (image_.width != image_.height)
      note(cat("the middle of the image, scaled to the model's ", size,
               " pixels; --expand 0,0,0,0 keeps all of it and makes the missing sides"));
    else if (image_.width != plan.image.width)
      note(cat("the image is scaled to the model's ", size, " pixels"));
    if (plan.remade() == 0)
      warning("nothing is made anew: no pixel of the mask lies in the image, or --strength is 0");
    else
      note(cat(plan.remade(), " of ", plan.cells.size(), " tokens are made anew"));
  }

  at::Tensor start(const BatchRequest& request) const override {
    return editor_->start(request.seed, request.first_index, int64_t(request.classes.size()));
  }

  void finish(const at::Tensor& images, const BatchRequest& request) const override {
    if (paste_back_) editor_->paste_back(images, request.seed, request.first_index);
  }

  void describe(Json& j) const override { j["edit"] = said_; }
  std::string summary() const override { return cat("Denoising strength: ", request_.strength); }

 private:
  // Its name and hash go into what is said: a path would tell more than anyone asked for.
  Image load(const std::string& what, const std::string& path) {
    const std::string bytes = read_file(path, kMaxFile);
    said_[what] = fs::path(path).filename().string();
    said_[what + "_sha256"] = sha256_hex(bytes.data(), bytes.size());
    return decode_image(std::as_bytes(std::span(bytes)), path);
  }

  Image image_;
  EditRequest request_;
  bool paste_back_, classes_in_turn_;
  Json said_;
  std::optional<Editor> editor_;
};

void run_edit(const EditOptions& o) {
  if (int(!o.mask.empty()) + int(!o.box.empty()) + int(!o.expand.empty()) > 1)
    throw InputError(
        "--mask, --box and --expand: give one of them; edit the result again for another region");
  if (o.mask.empty() && o.box.empty() && o.expand.empty() && !o.strength)
    throw InputError(
        "edit: say what to make anew: --mask FILE, --box X,Y,W,H, --expand L,T,R,B, or --strength for a "
        "share of the whole image");
  EditJob job(o);
  run_generate(o.generate, job);
}

}  // namespace

void add_edit(CLI::App& app) {
  auto* command = app.add_subcommand("edit", "inpaint, outpaint or re-imagine a part of an image");
  auto o = std::make_shared<EditOptions>();
  command->add_option("-i,--image", o->image, "the image to edit; brought to the model's size")->required();
  command->add_option("--mask", o->mask, "image of the same size, white = make anew");
  command->add_option("--box", o->box, "X,Y,WIDTH,HEIGHT in the image's pixels, made anew");
  command->add_option("--expand", o->expand,
                      "LEFT,TOP,RIGHT,BOTTOM pixels added and made; the canvas is filled up to a square");
  command->add_option("--strength", o->strength,
                      "share of the tokens in the region, or in the whole image, that is made anew, 0 to 1; "
                      "default: 1 in a region");
  command->add_option("--dilate", o->dilate, "grow the region by this many pixels")->capture_default_str();
  command->add_flag("--paste-back", o->paste_back,
                    "put the kept pixels back as they were, and smooth the seam");
  o->generate.add_to(*command, "what the image is to show; default: all classes in turn");
  command->footer(
      "Give one of --mask, --box and --expand, or --strength alone. A token is made anew when any pixel of\n"
      "the region falls into its cell (docs/editing.md).\n"
      "Examples:\n"
      "  adanat edit -m models/signs -i sign.png --box 8,8,16,16 -c speed-50 -o edited.png -n 9\n"
      "  adanat edit -m models/signs -i sign.png --mask mask.png --dilate 1 --paste-back -c stop -o out/\n"
      "  adanat edit -m models/signs -i sign.png --expand 8,8,8,8 -c yield -o wider.png\n"
      "  adanat edit -m models/signs -i sign.png --strength 0.6 -c roundabout -o like-it.png -n 4");
  command->callback([o] { run_edit(*o); });
}

}  // namespace adanat
