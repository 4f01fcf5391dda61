#!/usr/bin/env bash
# Measures what docs/perf.md and NOTEBOOK.md report, in one call on a machine with one GPU: calibration, correctness, then
# figures.
#
#   cargo build --profile ci --workspace --examples --bins
#   bench/gpu/all.sh target/ci target/ci/examples [FOLDER FOR LOGS]
#   PARTS="steps http" bench/gpu/all.sh ...        # some parts alone
#
# Needs the CUDA libraries on the loader's path; PyTorch and nvcc for the calibration, ncu and compute-sanitizer for the
# profile and the memory checks, root and transformers for the real files. A part whose command is missing is named and left out.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bins=$(realpath "$1") examples=$(realpath "$2") logs=${3:-$(mktemp -d)}
export DISAGG_REQUIRE_GPU=1 PYTHONUNBUFFERED=1
failed=()

part() { # name, command...
  local name=$1 begun=$SECONDS first
  if [[ -n ${PARTS:-} && " $PARTS " != *" $name "* ]]; then return; fi
  first=$(wc -l <"$logs/clocks.csv")
  shift
  if ! command -v "$1" >/dev/null; then
    echo "== $name: left out, $1 is not here"
    return
  fi
  echo "== $name"
  "$@" >"$logs/$name.txt" 2>&1 || failed+=("$name")
  grep -vE "^ok |^$" "$logs/$name.txt" | tail -75
  # The multiprocessors' clock and the power while this part ran, over samples above 300 W: a card at its power limit is
  # slower.
  awk -F', ' -v from="$first" 'NR > from && $3 > 300 { n++; clock += $2; power += $3; capped += ($4 == "Active") }
    END { if (n) printf "   over 300 W: %.0f MHz, %.0f W, at the power limit in %.0f %% of %d samples\n",
          clock / n, power / n, 100 * capped / n, n }' "$logs/clocks.csv"
  echo "== $name: $((SECONDS - begun)) s"
}

nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv,noheader
nvidia-smi --query-gpu=timestamp,clocks.sm,power.draw,clocks_event_reasons.sw_power_cap --format=csv,noheader,nounits \
  -lms 200 >"$logs/clocks.csv" 2>/dev/null &
clocks=$!
trap 'kill "$clocks" 2>/dev/null || true' EXIT
part calibration python3 "$here/beside_torch.py"
part kernels "$examples/cuda_kernels"
part models "$examples/cuda_check"
part memcheck compute-sanitizer --tool memcheck --error-exitcode 1 "$examples/cuda_kernels" small
part racecheck compute-sanitizer --tool racecheck --error-exitcode 1 "$examples/cuda_kernels" small
part steps "$examples/cuda_steps"
part idle "$examples/cuda_idle"
part transfer "$examples/cuda_transfer"
part faults python3 "$here/faults.py" "$bins/disagg"
part http "$here/http.sh" "$bins/disagg"
part handoff "$here/handoff.sh" "$bins/disagg"
part files python3 "$here/files.py" "$bins/disagg"
# Time and bytes of every kernel alone, as CSV.
part profile ncu --clock-control none --metrics gpu__time_duration.sum,dram__bytes_read.sum --csv \
  --log-file "$logs/profile.csv" "$examples/cuda_steps" profile
part table python3 "$here/table.py" "$logs"
echo "logs: $logs; failed: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
