#include <c10/util/Exception.h>
#include <malloc.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <new>

#include "apps/adanat/cli.h"
#include "core/base/error.h"
#include "core/base/text.h"
#include "core/nn/device.h"
#include "kernels/load.h"

namespace {

const char* const kOutOfMemory = "out of memory; use a smaller --batch-size or a smaller model";

int report(int status, const std::string& message) {
  // One line, whatever a library put into its message.
  std::fprintf(stderr, "error: %s\n", adanat::one_line(message).c_str());
  return status;
}

// Freed memory stays with the process, to be used again: activations come and go hundreds of times an image,
// and each time the system would fill new pages with zeros (64 images of models/signs: 142000 page faults and
// 5 % of the processor time less, 19 MiB more resident).
void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 256 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 16 << 20);
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
      return report(2, adanat::cat("argument ", i, " (", argv[i], ") is not valid UTF-8; rename the file"));
  const auto is_first = [&](const CLI::App* command) { return command->get_name() == argv[1]; };
  if (argc > 1 && argv[1][0] != '-' && app.get_subcommands(is_first).empty())
    return report(2, std::string(argv[1]) + ": no such command; see adanat --help");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {  // --help, --version
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    return report(2, std::string(e.what()) + "; see adanat " +
                         (app.get_subcommands().empty() ? "" : app.get_subcommands()[0]->get_name() + " ") +
                         "--help");
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    return report(1, "standard output cannot be written");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  keep_freed_memory();
  std::signal(SIGPIPE, SIG_IGN);     // a reader that went away is a failed write, not a sudden end
  adanat::kernels::load_cuda_ops();  // before the first call into torch, which fixes what devices there are
  try {
    return run(argc, argv);
  } catch (const adanat::Error& e) {
    return report(e.exit_code(), e.what());
  } catch (const c10::Error& e) {
    const std::string text = e.what_without_backtrace(), what = text.substr(0, text.find('\n'));
    const bool memory =
        what.find("allocate memory") != std::string::npos || what.find("out of memory") != std::string::npos;
    return report(1, memory ? kOutOfMemory : what);
  } catch (const std::bad_alloc&) {
    return report(1, kOutOfMemory);
  } catch (const std::filesystem::filesystem_error& e) {
    const bool full = e.code() == std::errc::no_space_on_device;
    return report(full ? 1 : 2, e.path1().string() + ": " + e.code().message());
  } catch (const std::exception& e) {
    return report(1, e.what());
  }
}
