# shellcheck shell=bash disable=SC2034  # some variables are for the script that sources this
# Sourced by the commands in scripts/: finds or installs what the project needs, chooses a preset, configures, builds.
# After sourcing, the current folder is the project's root.
#
# What it leaves behind: .venv/torch, a link to the LibTorch folder that the CMake presets use, and .venv/adanat-setup,
# one line that says which set of wheels is in .venv. That line is written last, so an interrupted set-up is done again.

TORCH_VERSION=2.11.0
# Enough to build and run on the CPU: the wheel itself and two libraries that libtorch_cpu.so is linked to.
TORCH_SLIM=(torch==2.11.0 nvidia-cuda-cupti==13.0.85 nvidia-cuda-runtime==13.0.96)
# nvcc 13.0 from wheels. The extra `nvvm` must be named: without it pip takes a newer one whose code ptxas rejects.
CUDA_COMPILER='cuda-toolkit[nvcc,nvvm,crt,cccl,cudart,cupti]==13.0.2'

command_name=$(basename "$0")
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$ROOT" || exit 1

say() { printf '== %s\n' "$*" >&2; }
fail() { printf '%s: %s\n' "$command_name" "$*" >&2; exit 2; }

# --- options that build, test and demo share ---
yes='' cuda=auto torch_dir=${ADANAT_TORCH:-}
SHARED_OPTIONS="\
  -y, --yes      install missing Debian packages without asking
  --cuda         with the CUDA kernels and the full wheel set, even if no GPU is seen
  --no-cuda      CPU only
  --torch DIR    use this LibTorch $TORCH_VERSION (a site-packages/torch folder) instead of installing it
  -h, --help     this text"

# option WORDS...: takes one shared option from the front; `taken` says how many words it used (0: not a shared one).
option() {
  taken=1
  case $1 in
    -y|--yes) yes=1 ;;
    --cuda) cuda=on ;;
    --no-cuda) cuda=off ;;
    --torch) [ $# -ge 2 ] || fail "--torch needs a folder"; torch_dir=$2 taken=2 ;;
    *) taken=0 ;;
  esac
}

# --- Debian packages ---
packages() { # packages GROUP...: the names listed for any of the groups
  awk -v groups="$*" 'BEGIN { n = split(groups, want, " ") } /^[^#]/ {
    for (i = 2; i <= NF; i++) for (j = 1; j <= n; j++) if ($i == want[j]) { print $1; next } }' scripts/packages.txt
}

setup_packages() { # setup_packages GROUP...
  local wanted installed missing=() name tool
  if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    for tool in g++ cmake ninja python3; do
      command -v "$tool" >/dev/null || fail "$tool is missing, and this is no Debian: install what scripts/packages.txt lists"
    done
    return
  fi
  mapfile -t wanted < <(packages "$@")
  # dpkg-query fails where it does not know one of the names: that is one that is missing.
  installed=$( (dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' "${wanted[@]}" 2>/dev/null || true) |
    awk '$1 ~ /^.i/ {print $2}')
  for name in "${wanted[@]}"; do
    grep -qxF "$name" <<<"$installed" || missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
}

install_packages() {
  local as_root=() answer install=(apt-get install -y --no-install-recommends "$@")
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "missing Debian packages, and no sudo here: as root, run: ${install[*]}"
    if [ -z "$yes" ]; then
      [ -t 0 ] || fail "missing Debian packages: run this with --yes, or first: sudo ${install[*]}"
      read -r -p "Missing Debian packages: $*. Install them with sudo? [Y/n] " answer
      case $answer in ''|[yY]*) ;; *) fail "not installed: run: sudo ${install[*]}" ;; esac
    fi
    as_root=(sudo)
  fi
  say "Debian packages, with apt-get: $*"
  install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}" -qq)
  # The package lists may be absent or old: refresh them only where the first try fails.
  "${install[@]}" >/dev/null 2>&1 ||
    { "${as_root[@]}" apt-get update -qq >/dev/null && "${install[@]}" >/dev/null; } ||
    fail "apt-get could not install the packages (its messages are above)"
}

# --- LibTorch ---
has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

find_nvcc() { # sets `nvcc` to a CUDA 13 compiler, in PATH, the usual folder or the wheels
  local candidate
  for candidate in "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc .venv/torch/../nvidia/cu13/bin/nvcc; do
    if [ -x "$candidate" ] && "$candidate" --version 2>/dev/null | grep -q 'release 13\.'; then
      nvcc=$(readlink -f "$candidate")
      return 0
    fi
  done
  return 1
}

# Prints the folder of a torch 2.11 that some python3 already has; nothing is imported.
find_torch() {
  python3 - "$TORCH_VERSION" 2>/dev/null <<'END' || true
import importlib.util, pathlib, re, sys
spec = importlib.util.find_spec("torch")
folder = pathlib.Path(spec.submodule_search_locations[0])
if re.search(rf"__version__ = .{re.escape(sys.argv[1])}\b", (folder / "version.py").read_text()):
    print(folder)
END
}

usable_torch() { [ -e "$1/lib/libtorch_cpu.so" ] && [ -e "$1/include/torch/csrc/api/include/torch/torch.h" ]; }

link_torch() { # link_torch TARGET LINE: the link that the presets use, then the line that says all is there
  ln -sfn "$1" .venv/torch
  printf '%s\n' "$2" >.venv/adanat-setup.new
  mv .venv/adanat-setup.new .venv/adanat-setup
}

# set_up WANT: whether the set-up that is there is whole and holds at least the set WANT.
set_up() {
  local have=''
  if [ -e .venv/adanat-setup ] && usable_torch .venv/torch; then read -r have <.venv/adanat-setup; fi
  case "$1 $have" in
    *" given "*|"slim $TORCH_VERSION "*|"full $TORCH_VERSION full"*|"full+nvcc $TORCH_VERSION full+nvcc") return 0 ;;
  esac
  return 1
}

setup_torch() {
  local want=slim found
  if [ -n "$torch_dir" ]; then
    usable_torch "$torch_dir" || fail "$torch_dir holds no LibTorch with headers (lib/libtorch_cpu.so, include/): give a site-packages/torch folder"
    torch_dir=$(realpath "$torch_dir")
    if [ ! -e .venv/adanat-setup ] || [ "$(readlink -f .venv/torch)" != "$torch_dir" ]; then
      mkdir -p .venv
      link_torch "$torch_dir" "given $torch_dir"
      say "LibTorch: $torch_dir"
    fi
    return
  fi
  if [ "$cuda" = on ] || { [ "$cuda" = auto ] && has_gpu; }; then
    want=full
    find_nvcc || want=full+nvcc
  fi
  ! set_up "$want" || return 0
  if [ ! -e .venv/pyvenv.cfg ]; then
    found=$(find_torch)
    if [ -n "$found" ] && usable_torch "$found" && { [ "$want" = slim ] || [ -e "$found/lib/libtorch_cuda.so" ]; }; then
      mkdir -p .venv
      link_torch "$found" "given $found"
      say "LibTorch: the one that python3 has, $found"
      return
    fi
  fi
  install_torch "$want"
}

install_torch() ( # install_torch slim|full|full+nvcc, in a subshell that holds a lock
  set -euo pipefail
  local python='' candidate free quiet=() download=0.5 disk=3
  [ "$1" = slim ] || download=3 disk=9
  mkdir -p build
  exec 9>build/.setup-lock
  flock 9
  ! set_up "$1" || return 0  # somebody else has done it meanwhile

  # An install that was cut off can look whole to pip: start anew. The folder is moved away first, because half of a
  # venv is worse than none (without pyvenv.cfg its pip installs into the system's Python).
  if [ -e .venv/.installing ] || { [ -e .venv/bin ] && [ ! -e .venv/pyvenv.cfg ]; }; then
    say "the last set-up was cut off; starting it anew"
    mv .venv build/discarded-venv.$$
  fi
  rm -rf build/discarded-venv.*
  free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
  [ "$free" -ge "$disk" ] || fail "only $free GB free here, the set-up takes up to $disk GB"
  for candidate in python3 /usr/bin/python3; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
  [ -n "$python" ] || fail "no python3 between 3.10 and 3.14 with the venv module: apt-get install python3-venv"

  say "LibTorch $TORCH_VERSION from its wheel into .venv (set: $1, a download of about $download GB)"
  local start=$SECONDS
  rm -f .venv/adanat-setup
  mkdir -p .venv
  touch .venv/.installing
  [ -e .venv/pyvenv.cfg ] || "$python" -m venv .venv
  export PIP_REQUIRE_VIRTUALENV=1
  [ -t 2 ] || quiet=(--quiet)
  local pip=(.venv/bin/python -m pip install --disable-pip-version-check --no-input --no-compile "${quiet[@]}") ok=1
  case $1 in
    slim) "${pip[@]}" --no-deps "${TORCH_SLIM[@]}" || ok='' ;;
    full) "${pip[@]}" "torch==$TORCH_VERSION" || ok='' ;;
    full+nvcc) "${pip[@]}" "torch==$TORCH_VERSION" "$CUDA_COMPILER" || ok='' ;;
  esac
  [ -n "$ok" ] || fail "pip could not install LibTorch (its messages are above); without a network, give --torch DIR"
  local site
  site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  usable_torch "$site/torch" || fail "$site/torch is not complete after the install: remove .venv and try again"
  rm .venv/.installing
  link_torch "$(realpath --relative-to=.venv "$site/torch")" "$TORCH_VERSION $1"
  say "LibTorch is there ($((SECONDS - start)) s)"
)

# --- configure and build ---
choose_preset() { # sets `preset`: cuda where a CUDA 13 compiler and torch's CUDA libraries are there, else cpu
  preset=cpu
  if [ "$cuda" != off ] && [ -e .venv/torch/lib/libtorch_cuda.so ] && find_nvcc; then
    preset=cuda
    # Read by CMake when it configures for the first time. nvcc looks for its libraries in lib64; wheels have lib.
    export CUDACXX=$nvcc
    case $nvcc in */nvidia/cu13/bin/nvcc) export CUDAFLAGS="-L${nvcc%/bin/nvcc}/lib" ;; esac
  elif [ "$cuda" = on ]; then
    fail "--cuda needs nvcc 13 and a LibTorch with CUDA; found: nvcc $(find_nvcc && echo "$nvcc" || echo none), $(readlink -f .venv/torch)"
  fi
}

configure() { # configure PRESET [CMake arguments...]; quiet unless it fails
  local log=build/configure-$1.log first='' arguments=()
  [ -e "build/$1/CMakeCache.txt" ] || first=1
  mkdir -p build
  for argument in "${@:2}"; do
    case $argument in
      first:*) [ -z "$first" ] || arguments+=("${argument#first:}") ;;  # a default that later choices may change
      *) arguments+=("$argument") ;;
    esac
  done
  cmake --preset "$1" "${arguments[@]}" >"$log" 2>&1 && return
  # A cache from another place or an older compiler is no reason to fail.
  [ -z "$first" ] && cmake --preset "$1" --fresh "${arguments[@]}" >"$log" 2>&1 && return
  cat "$log" >&2
  fail "CMake could not configure build/$1 (its messages are above)"
}

compilers() { # how many compilers fit: one per core, 1.5 GB of memory each
  local cores memory
  cores=$(nproc)
  memory=$(awk '/^MemAvailable/ {print int($2 / 1500000)}' /proc/meminfo)
  echo $((memory < 1 ? 1 : memory < cores ? memory : cores))
}

build() { # build PRESET [target...]
  local folder=build/$1 count parallel start=$SECONDS
  parallel=$(compilers)
  shift
  count=$(ninja -C "$folder" -n "$@" 2>/dev/null | grep -c 'Building C' || true)
  if [ "$count" -gt 4 ]; then
    # A file that sees LibTorch's headers takes a compiler about 14 s.
    say "compiling $count files on $parallel cores: up to $(((count * 14 / parallel + 59) / 60)) minutes, less with a warm ccache"
  fi
  NINJA_STATUS='[%f/%t] ' cmake --build "$folder" -j "$parallel" ${1:+--target "$@"} >&2 || fail "the build failed (see above)"
  [ "$count" -le 4 ] || say "compiled in $((SECONDS - start)) s"
}

# The program of the chosen preset, at build/adanat.
build_program() {
  local targets=(adanat)
  choose_preset
  configure "$preset" first:-DADANAT_TESTS=OFF
  # Without a GPU nobody can run the CUDA kernels: scripts/test compiles them all the same.
  if [ "$preset" = cuda ] && { [ "$cuda" = on ] || has_gpu; }; then targets+=(adanat_ops_cuda); fi
  build "$preset" "${targets[@]}"
  ln -sfn "$preset/adanat" build/adanat
}

# count_tests FILE: from ctest's JUnit file, the one line that counts; sets passed, failed and skipped.
count_tests() {
  attribute() { sed -n "s/^[[:space:]]*$1=\"\([0-9]*\)\".*/\1/p" "$2" | head -n 1; }
  failed=$(attribute failures "$1")
  skipped=$(($(attribute skipped "$1") + $(attribute disabled "$1")))
  passed=$(($(attribute tests "$1") - failed - skipped))
  printf '\n%s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
}
