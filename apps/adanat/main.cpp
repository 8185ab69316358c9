#include <c10/util/Exception.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <new>

#include "apps/adanat/cli.h"
#include "core/base/edit_distance.h"
#include "core/base/error.h"
#include "core/base/interrupt.h"
#include "core/base/text.h"
#include "core/nn/device.h"
#include "core/nn/heap.h"
#include "core/nn/out_of_memory.h"
#include "kernels/load.h"

namespace {

const char* const kOutOfMemory =
    "out of memory; use a smaller batch (--batch-size, in training --set batch_size=N) or a smaller model";

int report(int status, const std::string& message) {
  // One line, whatever a library put into its message.
  std::fprintf(stderr, "error: %s\n", adanat::one_line(message).c_str());
  return status;
}

// "adanat tokenize encode": the deepest command that was named.
std::string command_path(const CLI::App& app) {
  const auto named = app.get_subcommands();
  return app.get_name() + (named.empty() ? "" : " " + command_path(*named[0]));
}

const CLI::App& deepest(const CLI::App& app) {
  const auto named = app.get_subcommands();
  return named.empty() ? app : deepest(*named[0]);
}

// "; do you mean --steps?" where an option of the command that was named is spelled nearly so.
std::string near_miss(const CLI::App& app, const std::string& word) {
  std::string nearest;
  size_t least = 3;
  for (const CLI::Option* option : deepest(app).get_options()) {
    for (const std::string& name : option->get_lnames()) {
      const size_t distance = adanat::edit_distance("--" + name, word);
      if (distance < least) nearest = name, least = distance;
    }
  }
  if (nearest.empty()) return "";
  return least == 0 ? "; it belongs after " + command_path(app) : "; do you mean --" + nearest + "?";
}

// What is wrong, with the words that it is about.
std::string explained(const CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    const std::string words = std::string(error.what()) + " ";
    for (int i = 1; i < argc; ++i)
      if (words.find(" " + std::string(argv[i]) + " ") != std::string::npos)
        return std::string(argv[i]) + ": is nothing that this command takes" + near_miss(app, argv[i]);
  }
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr &&
      std::string(error.what()).find("At Most 1") != std::string::npos)
    return std::string(error.what()).substr(0, std::string(error.what()).find(':')) +
           ": is given more than once";
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr &&
      std::string(error.what()).starts_with("A subcommand")) {
    for (int i = 1; i < argc; ++i)
      if (argv[i][0] == '-' || i > 1) return std::string(argv[i]) + ": no such command";
    return "a command is missing";
  }
  return error.what();
}

int run(int argc, char** argv) {
  CLI::App app{
      "adanat: images from a masked-token transformer in a few steps, with schedules learned per image.",
      "adanat"};
  app.set_version_flag("--version",
                       [] { return "adanat " ADANAT_VERSION " (" + adanat::platform_line() + ")"; });
  app.footer("Try: adanat generate -m models/signs -o signs.png -n 43");
  app.require_subcommand(1);
  adanat::add_generate(app);
  adanat::add_edit(app);
  adanat::add_train(app);
  adanat::add_tokenize(app);
  adanat::add_eval(app);
  adanat::add_search(app);
  adanat::add_convert(app);
  adanat::add_info(app);
  adanat::add_bench(app);
  adanat::check_values(app);
  // Paths and names end up in JSON, which knows nothing else.
  for (int i = 1; i < argc; ++i)
    if (!adanat::is_utf8(argv[i]))
      return report(
          2, adanat::cat("argument ", i, " (", argv[i],
                         ") is not valid UTF-8; type it in UTF-8, or rename the file if it names one"));
  const auto is_first = [&](const CLI::App* command) { return command->get_name() == argv[1]; };
  if (argc > 1 && argv[1][0] != '-' && app.get_subcommands(is_first).empty())
    return report(2, std::string(argv[1]) + ": no such command; see adanat --help");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {  // --help, --version
    app.exit(e);
  } catch (const CLI::ParseError& e) {
    return report(2, explained(app, e, argc, argv) + "; see " + command_path(app) + " --help");
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    return report(1, "standard output cannot be written");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  adanat::receive_signals_apart();
  adanat::keep_freed_memory();
  std::signal(SIGPIPE, SIG_IGN);     // a reader that went away is a failed write, not a sudden end
  std::signal(SIGXFSZ, SIG_IGN);     // and so is a limit on the size of files
  adanat::kernels::load_cuda_ops();  // before the first call into torch, which fixes what devices there are
  try {
    return run(argc, argv);
  } catch (const adanat::Error& e) {
    return report(e.exit_code(), e.what());
  } catch (const c10::Error& e) {
    const std::string text = e.what_without_backtrace(), what = text.substr(0, text.find('\n'));
    return report(1, adanat::is_out_of_memory(e) ? kOutOfMemory : what);
  } catch (const std::bad_alloc&) {
    return report(1, kOutOfMemory);
  } catch (const std::filesystem::filesystem_error& e) {
    const bool full = e.code() == std::errc::no_space_on_device;
    return report(full ? 1 : 2, e.path1().string() + ": " + e.code().message());
  } catch (const std::exception& e) {
    return report(1, e.what());
  }
}
