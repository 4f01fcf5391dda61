#!/usr/bin/env bash
# Runs the original's load over HTTP through a router and one worker on one GPU.
#
#   bench/gpu/http.sh DISAGG [CONCURRENCY...]      # DISAGG: the executable; without concurrencies 1 10 32 64
#
# Prints the time from start to ready and one line per concurrency. WORKER_ARGS adds to the worker's arguments, LOAD_ARGS
# to the load's. The folder of the model is made in a temporary directory; weights are random ("dummy").
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
disagg=$(realpath "$1"); shift
scratch=$(mktemp -d)
children=()
trap 'kill "${children[@]}" 2>/dev/null || true; wait || true; rm -rf "$scratch"' EXIT
python3 "$here/model.py" "$scratch/m8b"
begun=$(date +%s.%N)
# shellcheck disable=SC2086
"$disagg" worker --model "$scratch/m8b" --load-format dummy --role both --listen 127.0.0.1:9000 --device cuda \
  --max-model-len 20000 --max-waiting 512 --max-num-seqs 64 ${WORKER_ARGS:-} >"$scratch/worker.log" 2>&1 &
children+=($!)
"$disagg" router --worker 127.0.0.1:9000 --listen 127.0.0.1:8181 >"$scratch/router.log" 2>&1 &
children+=($!)
ready=0
for _ in $(seq 1200); do
  kill -0 "${children[0]}" 2>/dev/null || break
  if python3 -c 'import urllib.request as u; u.urlopen("http://127.0.0.1:8181/ready", timeout=1)' 2>/dev/null; then
    ready=1
    break
  fi
  sleep 0.05
done
if [ "$ready" = 0 ]; then
  echo "not ready"; tail -20 "$scratch"/*.log
  exit 1
fi
python3 -c "import sys, time; print(f'start to ready: {time.time() - float(sys.argv[1]):.1f} s')" "$begun"
concurrency=${*:-1 10 32 64}
cpu() { awk -v ticks="$(getconf CLK_TCK)" '{ print ($14 + $15) / ticks }' "/proc/${children[0]}/stat"; }
before=$(cpu) begun=$SECONDS
# shellcheck disable=SC2086
python3 "$here/load.py" --model m8b --min-requests 12 --concurrency "${concurrency// /,}" ${LOAD_ARGS:-} \
  || { tail -20 "$scratch"/*.log; exit 1; }
awk -v a="$before" -v b="$(cpu)" -v s=$((SECONDS - begun)) 'BEGIN { printf "worker: %.1f s of CPU in %d s\n", b - a, s }'
