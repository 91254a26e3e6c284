#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Tests and measures attend on another machine, which has an NVIDIA GPU, no network, and only minutes of time.
#
#   benchmarks/gpu.sh pack FOLDER [INCLUDE...]    on this machine: creates FOLDER with everything that the other machine
#                                                 needs, at most 64 MiB
#   FOLDER/source/benchmarks/gpu.sh run FOLDER OUT [OPTION...]
#                                                 on the other machine: ends within 8 minutes; OUT then has the log and
#                                                 all results
#
# pack copies the sources and the headers of doctest and CLI11. It searches for the headers in the folders INCLUDE, in the
# cache of the presets and among the system's headers.
#
# run needs a GPU, g++, CMake, ninja, nvcc, and a Python with numpy and torch for CUDA: python3, or the one in the
# environment variable PYTHON. If anything is missing, it stops at once. It builds in FOLDER-build. The stages, each with a
# time limit:
#   1. the tests on the GPU
#   2. the example for five epochs
#   3. five epochs of the experiment, compared with the notebook's loop in Python
#   4. the rest of the tests
# It fails if a stage fails or reaches its limit. The options:
#
#   --seconds N  the total limit in seconds (default: 480); the limits of the stages scale with it
#   --rehearse   runs the same stages on the CPU, with little data, and without network, cache and ccache. nvcc is
#                optional. Tests on the GPU may be skipped.
#   --check      stops after configuring, and only checks that everything that the stages use exists
set -euo pipefail
script=$(readlink -f "$0")

die() {
  echo "benchmarks/gpu.sh: $1" >&2
  exit "${2:-1}"
}

usage() {
  die "usage: benchmarks/gpu.sh pack FOLDER [INCLUDE...] | run FOLDER OUT [--rehearse] [--check] [--seconds N]" 2
}

# ---- pack -----------------------------------------------------------------------------------------------------------

# Copies the headers of a package from the first folder that has them, and writes a file for find_package().
pack_headers() {  # PACKAGE TARGET HEADER INCLUDE...
  local package=$1 target=$2 header=$3 include
  for include in "${@:4}"; do
    if [[ -f $include/$header ]]; then
      mkdir -p "$folder/packages/$package/include"
      cp -rL "$include/${header%%/*}" "$folder/packages/$package/include/"
      cat > "$folder/packages/$package/${package}Config.cmake" << END
if(NOT TARGET $target)
  add_library($target INTERFACE IMPORTED GLOBAL)
  target_include_directories($target SYSTEM INTERFACE "\${CMAKE_CURRENT_LIST_DIR}/include")
endif()
END
      return
    fi
  done
  die "$header is in none of these folders: ${*:4}. Run 'cmake --preset test' first, which downloads it"
}

pack() {
  local root cache mebibytes
  root=$(dirname "$(dirname "$script")")
  cache=${ATTEND_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/attend}
  mkdir -p "$1"
  folder=$(cd "$1" && pwd)
  rm -rf "$folder/source" "$folder/packages"
  mkdir "$folder/source"
  tar --create --directory "$root" --exclude=./build --exclude=./.git --exclude=./.cache --exclude='./*_output' \
    --exclude=__pycache__ --exclude="./$(realpath --relative-to="$root" "$folder")" . |
    tar --extract --directory "$folder/source"
  pack_headers doctest doctest::doctest doctest/doctest.h "${@:2}" "$cache"/*/include /usr/local/include /usr/include
  pack_headers CLI11 CLI11::CLI11 CLI/CLI.hpp "${@:2}" "$cache"/*/include /usr/local/include /usr/include
  {
    date -u '+packed on %Y-%m-%d at %H:%M'
    git -C "$root" describe --always --dirty 2> /dev/null || true
  } > "$folder/packed.txt"
  mebibytes=$(du -sm "$folder" | cut -f 1)
  if ((mebibytes > 64)); then die "$folder has $mebibytes MiB, but must have at most 64 MiB"; fi
  echo "$folder has $mebibytes MiB. On the other machine, run: bash $1/source/benchmarks/gpu.sh run $1 OUT"
}

# ---- run ------------------------------------------------------------------------------------------------------------

limit=480
is_rehearsal=false
is_check=false
failed=()
status=0

section() { printf '\n==== %s (%d s) ====\n' "$1" "$SECONDS"; }

# Runs a command with a time limit: SECONDS, scaled with the total limit of 480 s, or the time that is left. Sets `status`.
# Failures are collected in `failed`, so that the next stages run after a failure.
stage() {  # NAME SECONDS COMMAND...
  local name=$1 most=$(($2 * limit / 480)) left=$((limit - limit / 48 - SECONDS)) # keeps some time for the end of the run
  if ((most > left)); then most=$left; fi
  status=124
  if ((most < 1)); then
    section "$name: cut, no time is left"
    failed+=("$name: cut before it began")
    return
  fi
  section "$name, at most $most s"
  status=0
  timeout --kill-after=5 "$most" "${@:3}" || status=$?
  if ((status == 124 || status == 137)); then
    echo "$name: cut after $most s"
    failed+=("$name: cut after $most s")
  elif ((status != 0)); then
    failed+=("$name: status $status")
  fi
}

need() {  # COMMAND
  command -v "$1" > /dev/null || die "$1 is missing on this machine"
}

# Checks what is installed and prints it. Sets python, torch (LibTorch's root), architecture and has_matplotlib.
preflight() {
  section "What is installed"
  if [[ ! -f $folder/source/CMakeLists.txt || ! -f $folder/packed.txt ]]; then
    die "$folder was not made by 'benchmarks/gpu.sh pack'"
  fi
  cat "$folder/packed.txt"
  local command facts
  for command in timeout c++ cmake ninja "${PYTHON:-python3}"; do need "$command"; done
  if ! command -v nvcc > /dev/null && [[ -x /usr/local/cuda/bin/nvcc ]]; then PATH=$PATH:/usr/local/cuda/bin; fi
  if [[ $is_rehearsal == false ]]; then need nvcc; fi
  c++ --version | head -n 1
  cmake --version | head -n 1
  if command -v nvcc > /dev/null; then nvcc --version | tail -n 1; fi
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null || true
  status=0
  facts=$(timeout --kill-after=5 90 "${PYTHON:-python3}" - "$device" << 'END'
import importlib.util
import pathlib
import sys

def stop(reason):
    sys.exit(f"benchmarks/gpu.sh: {reason}")

for name in ("torch", "numpy"):
    if not importlib.util.find_spec(name):
        stop(f"{sys.executable} has no package {name}; set the environment variable PYTHON to another Python")
import torch

root = pathlib.Path(torch.__file__).parent
if not (root / "include/torch/csrc/api/include/torch/version.h").is_file():
    stop(f"the package torch of {sys.executable} has no headers of LibTorch")
architecture = "90"
if sys.argv[1] == "cuda":
    if not torch.cuda.is_available():
        stop(f"torch {torch.__version__} of {sys.executable} cannot use a GPU of this machine")
    torch.ones(1, device="cuda").add(1).item()
    architecture = "%d%d" % torch.cuda.get_device_capability()
    print(f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}", file=sys.stderr)
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}", file=sys.stderr)
print(sys.executable, root, architecture, bool(importlib.util.find_spec("matplotlib")), sep="\n")
END
  ) || status=$?
  if ((status == 124 || status == 137)); then die "${PYTHON:-python3} needs more than 90 s to import torch"; fi
  if ((status == 1)); then exit 1; fi # the script has printed why
  if ((status != 0)); then die "${PYTHON:-python3} ended with status $status when it imported torch"; fi
  { read -r python && read -r torch && read -r architecture && read -r has_matplotlib; } <<< "$facts"
  if [[ $has_matplotlib == False ]]; then echo "matplotlib is missing: there are no figures, and the tests of the examples do not run."; fi
}

# The programs and tests of the stages. Tests run in parallel, so each gets two threads; with more they would only wait.
programs=(conv_vs_attention benchmarks/experiment)
set_tests() {
  local ctest=(env OMP_NUM_THREADS=2 ctest --test-dir "$build" --no-tests=error)
  gpu_tests=("${ctest[@]}" --label-regex '^gpu$' --parallel 4)
  other_tests=("${ctest[@]}" --label-exclude '^gpu$' --parallel "$(nproc)")
  if [[ $has_matplotlib == False ]]; then other_tests+=(--exclude-regex '^examples/'); fi
}

check() {
  section "Check of everything that the stages use"
  ninja -C "$build" -t query gpu_tests "${programs[@]}" {tests,examples}/all > /dev/null
  "${gpu_tests[@]}" --show-only | tail -n 1
  "${other_tests[@]}" --show-only | tail -n 1
  "$python" "$folder/source/benchmarks/experiment/measure.py" --help > /dev/null
  "$python" "$folder/source/benchmarks/experiment/notebook.py" --help > /dev/null
}

# Sends a signal to all processes in the builder's session, because ninja starts each compiler in its own process group.
signal_builder() {  # SIGNAL
  local process stat fields
  for process in /proc/[0-9]*; do
    stat=$(cat "$process/stat" 2> /dev/null) || continue
    read -ra fields <<< "${stat##*) }" # state, parent, process group, session
    if [[ ${fields[3]} == "$builder" ]]; then kill "-$1" "${process#/proc/}" 2> /dev/null || true; fi
  done
}

# Builds the programs, and then everything for the other tests, while the tests on the GPU run. signal_builder stops it.
start_builder() {
  rm -f "$build"/{programs,everything}.{log,status}
  # shellcheck disable=SC2016 # the inner shell expands it
  setsid bash -c 'build() {
                    cmake --build "$0" --target "${@:2}" -- -k 0 > "$0/$1.log" 2>&1
                    echo $? > "$0/$1.status"
                  }
                  build programs "$@"
                  build everything tests/all examples/all' "$build" "${programs[@]}" &
  builder=$!
  disown "$builder" # otherwise bash reports that it was killed
  trap 'signal_builder KILL; signal_builder KILL' EXIT # twice, for processes that started in the meantime
}

# A stage that waits until the builder has finished a part.
wait_for() {  # NAME SECONDS programs|everything
  # shellcheck disable=SC2016 # the inner shell expands it
  stage "$1" "$2" bash -c 'until [[ -s $0 ]]; do sleep 0.2; done; exit "$(< "$0")"' "$build/$3.status"
  if ((status != 0)); then grep -E -A 8 'FAILED|error:' "$build/$3.log" | head -n 60 || true; fi
  tail -n 1 "$build/$3.log" || true
}

finish() {
  if [[ -d $build/example ]]; then tar --create --gzip --file "$out/example.tar.gz" --directory "$build" example; fi
  if ((${#failed[@]})); then
    section "Failed or cut"
    printf '%s\n' "${failed[@]}"
    exit 1
  fi
  section "Done: everything is in $out"
  exit 0
}

run() {
  local device=cuda example=(--epochs 5) experiment=(--epochs 5 --threads "$(nproc)")
  if [[ $is_rehearsal == true ]]; then
    device=cpu
    example+=(--samples 320 --held-out 64)
    experiment+=(--quick --only-float32)
  fi
  preflight
  set_tests
  rm -rf "$out"/{gpu_tests,tests}.xml "$build/example" # results of an earlier run

  stage "Configure" 60 cmake -S "$folder/source" -B "$build" -G Ninja \
    -DCMAKE_BUILD_TYPE=Release -DATTEND_PROVISION=OFF \
    -DATTEND_BUILD_TESTS=ON -DATTEND_BUILD_EXAMPLES=ON -DATTEND_BUILD_BENCHMARKS=ON \
    "-DCMAKE_PREFIX_PATH=$torch;$folder/packages" "-DPython3_EXECUTABLE=$python" \
    "-DCMAKE_CUDA_ARCHITECTURES=$architecture"
  if ((status != 0)); then finish; fi
  if [[ $is_check == true ]]; then
    check
    finish
  fi

  stage "Build the tests on the GPU" 150 cmake --build "$build" --target gpu_tests -- -k 0
  start_builder
  stage "Tests on the GPU" 120 "${gpu_tests[@]}" --timeout 60 --output-on-failure --output-junit "$out/gpu_tests.xml"
  # Without a GPU these tests are skipped. With a GPU a skipped test is a failure.
  if [[ $is_rehearsal == false ]] && grep -qs '<skipped' "$out/gpu_tests.xml"; then
    failed+=("Tests on the GPU: some were skipped")
  fi

  wait_for "Build the example and the experiment" 120 programs
  signal_builder STOP # no compiler runs during the measurements
  signal_builder STOP # processes that started in the meantime
  stage "The example, five epochs" 60 \
    "$build/conv_vs_attention" --device "$device" "${example[@]}" --output "$build/example"
  stage "The experiment, five epochs" 120 "$python" -u "$folder/source/benchmarks/experiment/measure.py" \
    "$build/benchmarks/experiment" --device "$device" "${experiment[@]}" --output "$out"
  signal_builder CONT

  wait_for "Build the rest of the tests" 200 everything
  if ((status == 124 || status == 137)); then
    failed+=("The rest of the tests: cut before it began")
    finish
  fi
  stage "The rest of the tests" 300 "${other_tests[@]}" --timeout 200 --output-on-failure \
    --output-junit "$out/tests.xml"
  finish
}

# ---- Arguments ------------------------------------------------------------------------------------------------------

if (($# < 2)); then usage; fi
case $1 in
  pack) pack "${@:2}" ;;
  run)
    if (($# < 3)); then usage; fi
    arguments=("$@")
    folder=$(readlink -f "$2")
    build=$folder-build
    mkdir -p "$3"
    out=$(cd "$3" && pwd)
    shift 3
    while (($#)); do
      case $1 in
        --rehearse) is_rehearsal=true ;;
        --check) is_check=true ;;
        --seconds)
          if [[ ! ${2:-} =~ ^[0-9]+$ ]]; then usage; fi
          limit=$2
          shift
          ;;
        *) usage ;;
      esac
      shift
    done
    if [[ $is_rehearsal == true && -z ${ATTEND_GPU_IS_ISOLATED:-} ]]; then
      empty=$(mktemp -d)
      isolated=(env ATTEND_GPU_IS_ISOLATED=1 "HOME=$empty" "ATTEND_CACHE_DIR=$empty" CCACHE_DISABLE=1)
      unshare=(unshare --net)
      if "${unshare[@]}" true 2> /dev/null; then isolated+=("${unshare[@]}"); else echo "unshare failed, so the network stays on."; fi
      status=0
      "${isolated[@]}" bash "$script" "${arguments[@]}" || status=$?
      rm -rf "$empty"
      exit "$status"
    fi
    export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
    cd / # so that no file of the current folder is used
    run 2>&1 | tee "$out/log.txt"
    ;;
  *) usage ;;
esac
