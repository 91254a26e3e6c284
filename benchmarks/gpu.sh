#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Builds, tests and measures attend on a machine with an NVIDIA GPU: benchmarks/gpu.sh FOLDER. Everything that is
# printed and measured lies in FOLDER afterwards. Fails if there is no GPU, and if anything else does.
#
# Needs g++, CMake 3.25, ninja and a Python with torch 2.11 for CUDA, numpy and matplotlib: python3, or the one that the
# environment variable PYTHON names. With a network the presets get that Python's packages, doctest and CLI11; without
# one all of them must be there already. With nvcc the tests of the .cu files are built and run too.
set -euo pipefail
if (($# != 1)); then
  echo "usage: benchmarks/gpu.sh FOLDER" >&2
  exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
exec > >(tee "$folder/log.txt") 2>&1

section() { printf '\n==== %s (%d s) ====\n' "$1" "$SECONDS"; }

section "GPU"
if ! command -v nvidia-smi > /dev/null || ! nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv; then
  echo "benchmarks/gpu.sh: this machine has no NVIDIA GPU" >&2
  exit 1
fi
git log -1 --oneline 2> /dev/null || true

section "Configure"
options=()
if [[ -n ${PYTHON:-} ]]; then options+=("-DPython3_EXECUTABLE=$PYTHON"); fi
cmake --preset test ${options[@]+"${options[@]}"}
cmake --preset bench ${options[@]+"${options[@]}"}
python=$(sed -n 's/^ATTEND_PYTHON:[A-Z]*=//p' build/bench/CMakeCache.txt)
"$python" - << 'END'
import torch
if not torch.cuda.is_available():
    raise SystemExit(f"benchmarks/gpu.sh: torch {torch.__version__} of this Python cannot use the GPU")
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}")
END

section "Build"
cmake --build --preset test
cmake --build --preset bench

# What fails is remembered, so that one failure does not keep the rest from being known.
failed=()
attempt() {
  section "$1"
  "${@:2}" || failed+=("$1")
}

attempt "Tests on the GPU" ctest --preset test --label-regex '^gpu$' --output-junit "$folder/gpu_tests.xml"
# Without a GPU they skip themselves; with one that would be a failure.
if grep -q '<skipped' "$folder/gpu_tests.xml"; then failed+=("Tests on the GPU: some were skipped"); fi
attempt "All tests" ctest --preset test --output-junit "$folder/tests.xml"
attempt "The example, two epochs" build/test/conv_vs_attention --device cuda --epochs 2 --output "$folder/example"
attempt "The experiment" "$python" benchmarks/experiment/measure.py build/bench/benchmarks/experiment --device cuda \
  --output "$folder"

if ((${#failed[@]})); then
  section "Failed"
  printf '%s\n' "${failed[@]}"
  exit 1
fi
section "Done: everything is in $folder"
