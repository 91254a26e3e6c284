#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Tests and measures attend on a machine with an NVIDIA GPU, which may have no network and be lent for minutes only.
#
#   benchmarks/gpu.sh pack FOLDER [INCLUDE...]    on this machine: creates FOLDER with everything that the GPU machine
#                                                 needs, at most 64 MiB
#   FOLDER/source/benchmarks/gpu.sh run FOLDER OUT [OPTION...]
#                                                 on the GPU machine: ends within 10 minutes; OUT then has the log, all
#                                                 results, and the page gpu.md
#
# Both can be the same machine.
#
# pack compiles the programs of tests/cuda, which need no LibTorch, with nvcc for sm_90. That takes about ten minutes of
# processor time. They also run on other GPUs from sm_80 on, where the driver compiles them. pack copies the sources and
# the headers of doctest and CLI11. It searches for the headers in the folders INCLUDE, in the cache of the presets and
# among the system's headers.
#
# run needs a GPU, g++, CMake, ninja, nvcc, compute-sanitizer, and a Python with numpy and torch for CUDA: python3, or
# the one in the environment variable PYTHON. If anything is missing, run stops at once. Exception: without
# compute-sanitizer the other stages run, and run fails at the end. The programs that need LibTorch are built in
# FOLDER-build. Each stage has a time limit:
#
#   1. Configure.
#   2. The kernels, while the rest is built:
#      - The programs of tests/cuda: kernels and harness in one program, and the random calls of the harness's tests.
#      - Some of these calls under compute-sanitizer: memcheck finds wrong accesses, racecheck races in shared memory.
#   3. The tests on the GPU that need LibTorch: the way from attention() to the kernels, and CUDA graphs.
#   4. Five epochs of the experiment, compared with the notebook's loop in Python.
#   5. The benchmark gpu_attention: the kernels compared with SDPA and flex_attention. It gets the time that is left.
#   6. The page. gpu_page.py writes it from the files in OUT.
#
# Nothing else runs during the measurements. If a stage fails or reaches its limit, the other stages run nevertheless,
# and run fails at the end. Exception: after a failure of stage 1, only the page is written. The options:
#
#   --seconds N  the total limit in seconds (default: 590); the limits of the stages scale with it
#   --rehearse   runs the same stages on the CPU, with little data, and without network, cache and ccache. nvcc and
#                compute-sanitizer are optional. Tests on the GPU may be skipped.
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

need() {  # COMMAND
  command -v "$1" > /dev/null || die "$1 is missing on this machine"
}

PATH=$PATH:/usr/local/cuda/bin # nvcc and compute-sanitizer may be there

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

# Compiles the programs of tests/cuda. They hold g++'s library, because the other machine may have an older one, and no
# symbols, because the folder must be small.
pack_programs() {
  local flags=(-std=c++20 -O2 --diag-error=20011 '-gencode=arch=compute_90,code=sm_90'
               '-gencode=arch=compute_80,code=compute_80' '-Xcompiler=-static-libstdc++,-static-libgcc' -Xlinker=-s
               "-I$folder/source/include" "-I$folder/source/tests" "-I$folder/packages/doctest/include")
  mkdir -p "$folder/programs/calls"
  # shellcheck disable=SC2016 # the inner shell expands it
  (cd "$folder/source/tests/cuda" && find . -name '*.cu' -print0) |
    xargs -0 -P "$(nproc)" -I {} bash -c 'nvcc "${@:3}" "$1/source/tests/cuda/$2" -o "$1/programs/${2%.cu}"' \
      - "$folder" {} "${flags[@]}"
}

pack() {
  local root cache mebibytes
  need nvcc
  root=$(dirname "$(dirname "$script")")
  cache=${ATTEND_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/attend}
  mkdir -p "$1"
  folder=$(cd "$1" && pwd)
  rm -rf "$folder/source" "$folder/packages" "$folder/programs"
  mkdir "$folder/source"
  tar --create --directory "$root" --exclude=./build --exclude=./.git --exclude=./.cache --exclude='./*_output' \
    --exclude=__pycache__ --exclude="./$(realpath --relative-to="$root" "$folder")" . |
    tar --extract --directory "$folder/source"
  pack_headers doctest doctest::doctest doctest/doctest.h "${@:2}" "$cache"/*/include /usr/local/include /usr/include
  pack_headers CLI11 CLI11::CLI11 CLI/CLI.hpp "${@:2}" "$cache"/*/include /usr/local/include /usr/include
  pack_programs
  {
    date -u '+packed on %Y-%m-%d at %H:%M'
    git -C "$root" describe --always --dirty 2> /dev/null || true
  } > "$folder/packed.txt"
  mebibytes=$(du -sm "$folder" | cut -f 1)
  if ((mebibytes > 64)); then die "$folder has $mebibytes MiB, but must have at most 64 MiB"; fi
  echo "$folder has $mebibytes MiB. On the other machine, run: bash $1/source/benchmarks/gpu.sh run $1 OUT"
}

# ---- run ------------------------------------------------------------------------------------------------------------

total=590 # seconds, for which the limits of the stages are given
limit=$total
is_rehearsal=false
is_check=false
failed=()
status=0

section() { printf '\n==== %s (%d s) ====\n' "$1" "$SECONDS"; }

# Adds a line to the table of stages on the page, and the stage to `failed` if the result is not good.
note() {  # NAME SECONDS RESULT
  printf '%s,%d,%s\n' "$1" "$2" "$3" >> "$out/stages.csv"
  case $3 in passed | skipped) ;; *) failed+=("$1: $3") ;; esac
}

# `most` becomes SECONDS, scaled with the total limit, but at least 1; at most the time that is left. Some time is kept
# for the end of the run.
set_most() {  # SECONDS|rest
  local left=$((limit - limit / 60 - SECONDS))
  if [[ $1 == rest ]]; then
    most=$((left - 10 * limit / total - 1)) # for the page
  else
    most=$(($1 * limit / total + ($1 * limit < total)))
  fi
  if ((most > left)); then most=$left; fi
}

# Runs a command with a time limit. The next stages run even if it fails. Sets `status`.
stage() {  # NAME SECONDS|rest COMMAND...
  local most begin=$SECONDS
  set_most "$2"
  status=124
  if ((most < 1)); then
    section "$1: cut, no time is left"
    note "$1" 0 "cut before it began"
    return
  fi
  section "$1, at most $most s"
  status=0
  timeout --kill-after=5 "$most" "${@:3}" || status=$?
  if [[ $status == 77 && $is_rehearsal == true ]]; then
    note "$1" $((SECONDS - begin)) skipped
  elif ((status == 124 || status == 137)); then
    echo "$1: cut after $most s"
    note "$1" $((SECONDS - begin)) "cut after $most s"
  elif ((status != 0)); then
    note "$1" $((SECONDS - begin)) "status $status"
  else
    note "$1" $((SECONDS - begin)) passed
  fi
}

# Checks what is installed and prints it. Writes it to the top of stages.csv, for the page. Sets python, torch
# (LibTorch's root) and architecture.
preflight() {
  section "What is installed"
  if [[ ! -f $folder/source/CMakeLists.txt || ! -f $folder/packed.txt ]]; then
    die "$folder was not made by 'benchmarks/gpu.sh pack'"
  fi
  local command facts
  for command in timeout c++ cmake ninja "${PYTHON:-python3}"; do need "$command"; done
  if [[ $is_rehearsal == false ]]; then need nvcc; fi
  status=0
  facts=$(timeout --kill-after=5 90 "${PYTHON:-python3}" - "$device" "$out/stages.csv" << 'END'
import datetime
import importlib.util
import os
import pathlib
import subprocess
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
architecture, card = "90", "no GPU"
if sys.argv[1] == "cuda":
    if not torch.cuda.is_available():
        stop(f"torch {torch.__version__} of {sys.executable} cannot use a GPU of this machine")
    torch.ones(1, device="cuda").add(1).item()
    architecture = "%d%d" % torch.cuda.get_device_capability()
    driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"],
                            stdout=subprocess.PIPE, text=True).stdout.strip()
    card = f"{torch.cuda.get_device_name()}, driver {driver or 'unknown'}, CUDA {torch.version.cuda}"
with open(sys.argv[2], "w") as file:
    file.write(f"# date {datetime.date.today()}\n# card {card}\n"
               f"# software torch {torch.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores\n")
print(sys.executable, root, architecture, sep="\n")
END
  ) || status=$?
  if ((status == 124 || status == 137)); then die "${PYTHON:-python3} needs more than 90 s to import torch"; fi
  if ((status == 1)); then exit 1; fi # the script has printed why
  if ((status != 0)); then die "${PYTHON:-python3} ended with status $status when it imported torch"; fi
  { read -r python && read -r torch && read -r architecture; } <<< "$facts"
  {
    sed 's/^/# source /' "$folder/packed.txt"
    c++ --version | sed -n '1s/^/# compiler /p'
    if command -v nvcc > /dev/null; then nvcc --version | sed -n '$s/^/# nvcc /p'; fi
  } >> "$out/stages.csv"
  cat "$out/stages.csv"
  cmake --version | head -n 1
  echo "stage,seconds,result" >> "$out/stages.csv"
}

# What is built on this machine, and the tests. Those of tests/cuda are in the packed programs.
set_targets() {
  targets=(attend_gpu_tests benchmark_experiment)
  library=()
  if command -v nvcc > /dev/null; then
    targets+=(cuda_model benchmark_gpu_attention)
    library=("$build/benchmarks/gpu_attention.so")
  fi
  tests=(ctest --test-dir "$build" --no-tests=error --label-regex '^gpu$' --exclude-regex '^cuda/' --parallel 4)
}

check() {
  section "Check of everything that the stages use"
  ninja -C "$build" -t query "${targets[@]}" > /dev/null
  "${tests[@]}" --show-only | tail -n 1
  local script
  for script in gpu_attention/measure.py experiment/measure.py experiment/notebook.py gpu_page.py; do
    "$python" "$folder/source/benchmarks/$script" --help > /dev/null
  done
  ls "$folder"/programs/{harness,philox,score_mod} "$folder"/programs/calls/*
}

# The targets, with a time limit. Other stages run meanwhile.
start_builder() {
  local most
  set_most 240
  if ((most < 1)); then most=1; fi
  build_begin=$SECONDS
  timeout --kill-after=5 "$most" cmake --build "$build" --target "${targets[@]}" -- -k 0 > "$build/build.log" 2>&1 &
  builder=$!
  trap 'kill "$builder" 2> /dev/null || true' EXIT
}

wait_for_builder() {
  local result=passed
  section "Build, at most until its limit"
  status=0
  wait "$builder" || status=$?
  trap - EXIT
  if ((status == 124 || status == 137)); then
    result="cut"
  elif ((status != 0)); then
    result="status $status"
    grep -E -A 8 'FAILED|error:' "$build/build.log" | head -n 60 || true
  fi
  tail -n 1 "$build/build.log" || true
  note Build $((SECONDS - build_begin)) "$result"
}

# A stage that runs programs one after the other, also after a failure. RUN_BY is a command that runs a program.
stage_of_programs() {  # NAME SECONDS PROGRAM...
  # shellcheck disable=SC2016 # the inner shell expands it
  stage "$1" "$2" bash -c 'status=0
                           for program; do
                             echo "---- ${program##*/}"
                             $RUN_BY "$program" || status=$?
                           done
                           exit $status' - "${@:3}"
}

# A stage with two of the random calls of each test under compute-sanitizer.
sanitize() {  # TOOL SECONDS
  if command -v compute-sanitizer > /dev/null; then
    ATTEND_TEST_CONFIGURATION=0-1 RUN_BY="compute-sanitizer --tool $1 --error-exitcode 1" \
      stage_of_programs "Random calls with $1" "$2" "$folder"/programs/calls/*
  elif [[ $is_rehearsal == true ]]; then
    echo "compute-sanitizer is missing: $1 is left out"
    note "Random calls with $1" 0 skipped
  else
    note "Random calls with $1" 0 "compute-sanitizer is missing"
  fi
}

finish() {
  stage "The page" 5 "$python" "$folder/source/benchmarks/gpu_page.py" "$out"
  if ((${#failed[@]})); then
    section "Failed or cut"
    printf '%s\n' "${failed[@]}"
    exit 1
  fi
  section "Done: everything is in $out"
  exit 0
}

run() {
  local device=cuda attention=() experiment=(--epochs 5 --threads "$(nproc)")
  if [[ $is_rehearsal == true ]]; then
    device=cpu
    attention=(--rehearse --rounds 1)
    experiment+=(--quick --only-float32)
  fi
  rm -f "$out"/{stages.csv,gpu_tests.xml,attention.csv,gpu.md,experiment*} # of an earlier run
  preflight
  set_targets

  stage "Configure" 35 cmake -S "$folder/source" -B "$build" -G Ninja \
    -DCMAKE_BUILD_TYPE=Release -DATTEND_PROVISION=OFF \
    -DATTEND_BUILD_TESTS=ON -DATTEND_BUILD_EXAMPLES=ON -DATTEND_BUILD_BENCHMARKS=ON \
    "-DCMAKE_PREFIX_PATH=$torch;$folder/packages" "-DPython3_EXECUTABLE=$python" \
    "-DCMAKE_CUDA_ARCHITECTURES=$architecture"
  if ((status != 0)); then finish; fi
  if [[ $is_check == true ]]; then
    check
    finish
  fi

  start_builder
  RUN_BY='' stage_of_programs "Kernels and harness" 30 "$folder"/programs/{harness,philox,score_mod}
  RUN_BY='' stage_of_programs "Random calls" 90 "$folder"/programs/calls/*
  sanitize memcheck 60
  sanitize racecheck 75
  wait_for_builder

  stage "Tests with LibTorch" 60 "${tests[@]}" --timeout 50 --output-on-failure --output-junit "$out/gpu_tests.xml"
  # Without a GPU these tests are skipped. With a GPU a skipped test is a failure.
  if [[ $is_rehearsal == false ]] && grep -qs '<skipped' "$out/gpu_tests.xml"; then
    note "Tests with LibTorch" 0 "some were skipped"
  fi
  stage "The experiment" 110 "$python" -u "$folder/source/benchmarks/experiment/measure.py" \
    "$build/benchmarks/experiment" --device "$device" "${experiment[@]}" --output "$out"
  stage "Attention" rest "$python" -u "$folder/source/benchmarks/gpu_attention/measure.py" "${library[@]}" \
    --seconds $(((limit - SECONDS) * 8 / 10)) --output "$out" "${attention[@]}"
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
