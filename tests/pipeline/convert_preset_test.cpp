// The presets of convert(): what they are for, what they say, what is refused.
#include "pipeline/convert_fixture.h"

#include "support/message_of.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::message_of;
using testing::TempDir;
using testing::write_hollow;

class ConvertWithPreset : public testing::ConvertFixture {};

TEST_F(ConvertWithPreset, ClassNames) {
  ConvertOptions o = options();
  convert(o);
  EXPECT_EQ(read_model_config(o.out).class_names.size(), 10u);
  EXPECT_EQ(read_model_config(o.out).class_names[9], "9");
  fs::remove_all(o.out);
  fs::path names;
  o.class_names = dir_ / "names.txt";
  std::ofstream(o.class_names) << "tench, Tinca tinca\r\n\xc3\xa9t\xc3\xa9\nc\nd\ne\nf\ng\nh\ni\nj";
  convert(o);
  EXPECT_EQ(read_model_config(o.out).class_names[0], "tench, Tinca tinca");
  EXPECT_EQ(read_model_config(o.out).class_names[1], "\xc3\xa9t\xc3\xa9");
  fs::remove_all(o.out);
  // A preset's, unless the flag gives others.
  o.config = dir_ / "preset.json";
  std::ofstream(o.config) << R"({"class_names": ["p", "q", "r", "s", "t", "u", "v", "w", "x", "y"]})";
  convert(o);
  EXPECT_EQ(read_model_config(o.out).class_names[9], "j");
  fs::remove_all(o.out);
  std::swap(o.class_names, names);
  convert(o);
  EXPECT_EQ(read_model_config(o.out).class_names[9], "y");
  fs::remove_all(o.out);
  std::swap(o.class_names, names), o.config.clear();
  // ImageNet's published lists name two pairs of classes alike.
  const auto said = [&] {
    ::testing::internal::CaptureStderr();
    convert(o);
    EXPECT_EQ(read_model_config(o.out).class_names.size(), 10u);
    fs::remove_all(o.out);
    return ::testing::internal::GetCapturedStderr();
  };
  std::ofstream(o.class_names) << "a\nmaillot\nmaillot\nd\ncrane\nf\ng\ncrane\nCrane\nmaillot\n";
  const std::string shared =
      R"(several classes share a name: "crane" (4,7), "maillot" (1,2,9); --class NAME )"
      "takes the first, the others have their numbers only\n";
  EXPECT_EQ(said(), cat("warning: ", o.class_names.string(), ": ", shared));
  o.config = dir_ / "preset.json";
  std::swap(o.class_names, names);
  std::ofstream(o.config)
      << R"({"class_names": ["a", "maillot", "maillot", "d", "crane", "f", "g", "crane", "c", "maillot"]})";
  EXPECT_EQ(said(), cat("warning: ", o.config.string(), ": ", shared));
  std::swap(o.class_names, names), o.config.clear();
  std::ofstream(o.class_names) << "a\nb\n";
  expect_error(o, {"names.txt", "has 2 names", "10 classes"});
  std::ofstream(o.class_names) << "a\n\nb\n";
  expect_error(o, {"names.txt", "line 2"});
}

GeneratorConfig config_of(const GeneratorSizes& s) {
  GeneratorConfig config;
  config.width = s.width, config.depth = s.depth, config.heads = s.heads, config.codes = s.codes;
  config.grid_height = config.grid_width = s.grid;
  if (s.classes > 0) config.classes = s.classes;
  if (s.text_width > 0) config.condition = "text", config.text_width = s.text_width;
  return config;
}

TEST(ConvertPresets, AllAreReadAndFitWhatTheyAreFor) {
  std::map<std::string, int64_t> parameters;
  for (const auto& entry : fs::directory_iterator(testing::source_dir() / "configs/public")) {
    SCOPED_TRACE(entry.path());
    const auto preset =
        config_from_json<ConvertPreset>(read_json_file(entry.path().string()), entry.path().string());
    EXPECT_FALSE(preset.description.empty());
    int64_t& count = parameters[entry.path().stem()];
    for (const auto& [name, shape] : generator_shapes(config_of(preset.generator)))
      count += c10::multiply_integers(shape);
    EXPECT_EQ(preset.image_size, preset.generator.grid * 16);
  }
  EXPECT_EQ(parameters.at("adanat-l-256"), 193'655'297);
  EXPECT_EQ(parameters.at("autonat-l-256"), 193'655'297);
  EXPECT_EQ(parameters.at("adagen-maskgit-l-256"), 193'655'297);
  EXPECT_EQ(parameters.at("adanat-l-512"), 193'655'297 + 768 * 768);  // as many positions more
  EXPECT_NEAR(double(parameters.at("adanat-s-256")), 45.55e6, 0.01e6);
  EXPECT_EQ(parameters.size(), 7u);
}

// A generator of a published size has its heads without the preset, too; the preset takes it and no other.
TEST(ConvertPresets, TakeTheirGeneratorAndNoOther) {
  const TempDir dir;
  for (const auto& entry : fs::directory_iterator(testing::source_dir() / "configs/public")) {
    SCOPED_TRACE(entry.path());
    const auto preset =
        config_from_json<ConvertPreset>(read_json_file(entry.path().string()), entry.path().string());
    const GeneratorSizes& sizes = preset.generator;
    const bool text = sizes.text_width > 0;
    write_hollow(dir / "g.pth", generator_shapes(config_of(sizes)));
    const WeightSource source = WeightSource::open(dir / "g.pth");
    const auto error = [&](const GeneratorSizes& other) -> std::string {
      return message_of([&] { read_generator(source, 0, other, "p.json"); });
    };
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(read_generator(source, 0, {}, "").config, config_of(sizes));
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find(cat("g.pth: ", sizes.heads, " attention heads")), std::string::npos) << said;
    EXPECT_EQ(read_generator(source, 0, sizes, "p.json").config, config_of(sizes));
    const std::pair<const char*, int64_t GeneratorSizes::*> condition =
        text ? std::pair{"text width", &GeneratorSizes::text_width}
             : std::pair{"number of classes", &GeneratorSizes::classes};
    for (const auto& [what, size] : {std::pair{"width", &GeneratorSizes::width},
                                     {"depth", &GeneratorSizes::depth},
                                     {"codebook", &GeneratorSizes::codes},
                                     {"grid side", &GeneratorSizes::grid},
                                     condition}) {
      GeneratorSizes other = sizes;
      other.*size += 1;
      const std::string wanted =
          cat("its ", what, " is ", sizes.*size, ", p.json says ", other.*size, "; it is not");
      EXPECT_NE(error(other).find(wanted), std::string::npos) << wanted << "\n" << error(other);
    }
    GeneratorSizes other = sizes;
    other.classes = text ? 1000 : 0, other.text_width = text ? 0 : 1280;
    const std::string wanted = text ? "on text, p.json is for one conditioned on class"
                                    : "on class, p.json is for one conditioned on text";
    EXPECT_NE(error(other).find(wanted), std::string::npos) << error(other);
  }
}

TEST_F(ConvertWithPreset, APresetThatCannotBeIsRefused) {
  ConvertOptions o = options();
  o.config = dir_ / "preset.json";
  for (const auto& [preset, part] :
       {std::pair{R"({"image_size": -1})", "preset.json: image_size must be 0..16384, got -1"},
        {R"({"generator": {"depth": -2}})", "preset.json: generator.depth must be 0 or more, got -2"},
        {R"({"policy": {"residual": "yes"}})", "preset.json: policy.residual must be heuristic, none or"},
        {R"({"policy": {"smoothing": 1}})", "preset.json: policy.smoothing must be -1, or in [0, 1), got 1"},
        {R"({"policy": {"heuristic": {"guidance": 0}}})", "preset.json: policy.heuristic.guidance must be"},
        {R"({"sampling": {"steps": 0}})", "preset.json: sampling.steps must be 1..1000, got 0"},
        {R"({"table": {"steps": 2, "mask_ratio": [0.5]}})", "preset.json: table.mask_ratio has 1 entries"},
        {R"({"class_names": ["a", "b\u0007"]})", "preset.json: class_names must be made of names"}}) {
    std::ofstream(o.config) << preset;
    expect_error(o, {part});
  }
}

TEST_F(ConvertWithPreset, APresetIsForOneCheckpoint) {
  ConvertOptions o = options();
  o.heads = 0;
  o.config = testing::source_dir() / "configs/public/adanat-l-256.json";
  expect_error(o, {"gen.safetensors", "width is 12", "adanat-l-256.json says 768"});
  o.config = testing::source_dir() / "configs/public/adanat-cc3m.json";
  expect_error(o, {"width is 12", "says 1152"});
  o.config = dir_ / "preset.json";
  std::ofstream(o.config) << R"({"image_size": 32, "generator": {"heads": 3}})";
  expect_error(o, {"preset.json", "image_size is 32", "is 16"});
  std::ofstream(o.config) << R"({"generator": {"heads": 3, "text_width": 20}})";
  expect_error(o, {"conditioned on class"});
  std::ofstream(o.config) << R"({"generator": {"hats": 3}})";
  expect_error(o, {"preset.json", "generator.hats"});
  std::ofstream(o.config) << R"({"class_names": ["a"], "generator": {"heads": 3}})";
  expect_error(o, {"preset.json", "1 names", "10 classes"});
}

// The published table, which the folder then uses by itself, is the one that --schedule autonat has.
TEST_F(ConvertWithPreset, APublishedTableBecomesThePolicyOfItsSteps) {
  ConvertOptions o = options();
  o.config = dir_ / "preset.json";
  Json preset = read_json_file((testing::source_dir() / "configs/public/autonat-l-256.json").string());
  const auto table = config_from_json<ScheduleTable>(preset["table"], "table");
  EXPECT_EQ(table, autonat_table(8));
  preset["generator"] = Json::object(), preset["image_size"] = 0;
  std::ofstream(o.config) << preset.dump();
  convert(o);
  Pipeline pipeline = Pipeline::open(o.out, at::kCPU, at::kFloat);
  const auto by_itself = pipeline.schedule("", 0, {}), named = pipeline.schedule("autonat", 0, {});
  EXPECT_EQ(by_itself->name(), "adaptive");
  const BatchRequest request{{0, 3, 9}, 11, 0};
  EXPECT_TRUE(
      at::equal(pipeline.generate(request, *by_itself).tokens, pipeline.generate(request, *named).tokens));
  const PolicyNetworkConfig network = read_policy(o.out / "policy-T8.safetensors").settings.network;
  EXPECT_EQ(std::tuple(network.codes, network.grid_height, network.grid_width, network.input_width),
            std::tuple(32, 4, 4, 12));
  const auto state = by_itself->begin(1, at::kCPU);
  for (int64_t t = 0; t < 8; ++t) {
    const Action action = by_itself->next(state.get(), t, at::zeros({1, 16, 12}));
    EXPECT_EQ(action.mask_ratio.item<double>(), table.mask_ratio[size_t(t)]);
    EXPECT_EQ(action.guidance.item<float>(), float(table.guidance[size_t(t)]));
    EXPECT_EQ(by_itself->known_guidance(t), named->known_guidance(t));
  }
  fs::remove_all(o.out);
  o.policies = {{dir_ / "policy.pth", 8}};  // a policy for as many steps is what was asked for
  convert(o);
  EXPECT_FALSE(read_policy(o.out / "policy-T8.safetensors").settings.network.shared());
}

}  // namespace
}  // namespace adanat
