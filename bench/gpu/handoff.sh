#!/usr/bin/env bash
# One prefill and one decode worker, KV through host memory and TCP; then one worker of role `both` on the same prompts.
# Prints the time to the first token of both, the speed of the pushes, and how many answers are equal.
#
#   bench/gpu/handoff.sh DISAGG [DEVICE OF THE PREFILL WORKER [DEVICE OF THE DECODE WORKER]]
#
# Both default to cuda:0. With `cpu` for one of them the model is small, and that worker rounds keys and values to the GPU's
# format; answers are then equal until rounding makes another token likelier.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
disagg=$(realpath "$1") prefill_device=${2:-cuda:0} decode_device=${3:-cuda:0}
shape=() count=12
if [[ $prefill_device$decode_device == *cpu* ]]; then shape=(4 1024) count=4; fi
scratch=$(mktemp -d)
children=()
trap 'kill "${children[@]}" 2>/dev/null || true; wait || true; rm -rf "$scratch"' EXIT
python3 "$here/model.py" "$scratch/m8b" "${shape[@]}"

worker() { # role, port, device, share of the GPU's memory
  "$disagg" worker --model "$scratch/m8b" --load-format dummy --role "$1" --listen "127.0.0.1:$2" --device "$3" \
    --max-model-len 8192 --gpu-memory-utilization "$4" --kv-cache-dtype bfloat16 >"$scratch/$1.log" 2>&1 &
  children+=($!)
}

serve() { # port of the router, ports of the workers
  local port=$1 workers=() ; shift
  for each in "$@"; do workers+=(--worker "127.0.0.1:$each"); done
  "$disagg" router "${workers[@]}" --listen "127.0.0.1:$port" --admin-listen "127.0.0.1:$((port + 100))" >"$scratch/router-$port.log" 2>&1 &
  children+=($!)
  for _ in $(seq 1200); do
    if python3 - "$((port + 100))" $# 2>/dev/null <<'P'
import json, sys, urllib.request
port, wanted = map(int, sys.argv[1:])
workers = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/internal/workers", timeout=1))["workers"]
sys.exit(sum(worker["state"] == "ready" for worker in workers) < wanted)
P
    then
      return
    fi
    sleep 0.05
  done
  echo "not ready"; tail -20 "$scratch"/*.log
  exit 1
}

# On one GPU, a worker takes at most what is free: the second one gets what the first leaves of its share of 0.8.
worker decode 9001 "$decode_device" 0.4
serve 8101 9001
worker prefill 9002 "$prefill_device" 0.8
serve 8102 9001 9002
python3 "$here/answers.py" http://127.0.0.1:8102 "$scratch/remote.json" "$count"
curl -s http://127.0.0.1:8202/metrics | grep -E "^disagg_router_(placements|requests)" | head -5 || true
python3 - <<'P'
import json, urllib.request
workers = json.load(urllib.request.urlopen("http://127.0.0.1:8202/internal/workers", timeout=5))["workers"]
for worker in workers:
    for peer, speed in worker["transfer_bytes_per_second"].items():
        print(f"{worker['name']} to {peer}: {speed / 1e9:.1f} GB/s while it pushes, running mean")
P
kill "${children[@]}"; wait || true
children=()
worker both 9003 cuda:0 0.8
serve 8103 9003
python3 "$here/answers.py" http://127.0.0.1:8103 "$scratch/local.json" "$count"
python3 - "$scratch/remote.json" "$scratch/local.json" <<'P'
import json, sys
remote, local = (json.load(open(path)) for path in sys.argv[1:])
equal = sum(a == b for a, b in zip(remote, local))
print(f"{equal} of {len(local)} answers are equal, handed over and local")
alike = [next((i for i, (x, y) in enumerate(zip(a.split(), b.split())) if x != y), len(a.split())) for a, b in zip(remote, local)]
print(f"tokens until they differ: {alike}")
P
# With RUST_LOG=disagg_worker=debug, shows where the time of the last handoff went.
grep -h DEBUG "$scratch/decode.log" "$scratch/prefill.log" | sort | tail -9 || true
grep -hE "WARN|ERROR" "$scratch"/{decode,prefill,both}.log | head -5 || true
