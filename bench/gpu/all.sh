#!/usr/bin/env bash
# Everything that docs/perf.md reports, in one call on a machine with one GPU: calibration, correctness, then figures.
#
#   cargo build --profile ci --workspace --examples --bins
#   bench/gpu/all.sh target/ci target/ci/examples [FOLDER FOR LOGS]
#
# Needs the CUDA libraries where the loader finds them; PyTorch and nvcc for the calibration, ncu and compute-sanitizer for
# the profile and the memory checks. What is missing is named and left out.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bins=$(realpath "$1") examples=$(realpath "$2") logs=${3:-$(mktemp -d)}
export DISAGG_REQUIRE_GPU=1 PYTHONUNBUFFERED=1
failed=()

part() { # name, command...
  local name=$1 begun=$SECONDS
  shift
  if ! command -v "$1" >/dev/null; then
    echo "== $name: left out, $1 is not here"
    return
  fi
  echo "== $name"
  "$@" >"$logs/$name.txt" 2>&1 || failed+=("$name")
  grep -vE "^ok |^$" "$logs/$name.txt" | tail -45
  echo "== $name: $((SECONDS - begun)) s"
}

nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv,noheader
part calibration python3 "$here/beside_torch.py"
part kernels "$examples/cuda_kernels"
part models "$examples/cuda_check"
part memcheck compute-sanitizer --tool memcheck --error-exitcode 1 "$examples/cuda_kernels" small
part racecheck compute-sanitizer --tool racecheck --error-exitcode 1 "$examples/cuda_kernels" small
part steps "$examples/cuda_steps"
part transfer "$examples/cuda_transfer"
part http "$here/http.sh" "$bins/disagg"
part handoff "$here/handoff.sh" "$bins/disagg"
# Time and bytes of every kernel alone, as CSV.
if command -v ncu >/dev/null; then
  ncu --clock-control none --metrics gpu__time_duration.sum,dram__bytes_read.sum --csv \
    "$examples/cuda_steps" profile >"$logs/profile.csv" 2>&1 || failed+=(profile)
fi
echo "logs: $logs; failed: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
