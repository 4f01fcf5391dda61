#!/usr/bin/env python3
"""aiperf against `disagg up`, in the shape of the original's measurement: ISL 3000, OSL 150, 10 at a time.

`make acceptance` runs it. REQUESTS, WARMUP, ISL, OSL and CONCURRENCY change the numbers. It passes if every answer has as
many tokens as were asked for.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from deployment import Deployment

LIMIT_S = 1800


def number(name, default):
    return int(os.environ.get(name) or default)


def command(url, tokenizer, folder, isl, osl, concurrency, requests, warmup):
    """The original's genai-perf command, with aiperf's option names."""
    run = "import sys; sys.argv[0] = 'aiperf'; from aiperf.cli import app; app()"
    return [
        sys.executable, "-c", run, "profile",
        "--model", Deployment.MODEL, "--tokenizer", str(tokenizer),
        "--endpoint-type", "chat", "--url", url, "--streaming",
        "--isl", str(isl), "--isl-stddev", "0", "--osl", str(osl), "--osl-stddev", "0",
        "--extra-inputs", f"min_tokens:{osl}", "--extra-inputs", "ignore_eos:true",
        "--concurrency", str(concurrency), "--request-count", str(requests),
        "--warmup-request-count", str(warmup), "--num-dataset-entries", str(requests), "--random-seed", "123",
        "--use-server-token-count", "--workers-max", "2", "--output-artifact-dir", str(folder), "--ui", "none",
    ]


def main():
    isl, osl, concurrency = number("ISL", 3000), number("OSL", 150), number("CONCURRENCY", 10)
    requests, warmup = number("REQUESTS", 40), number("WARMUP", 10)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="disagg-aiperf-"))
    try:
        with Deployment() as deployment:
            (tokenizer,) = (deployment.home / ".cache/disagg/models").iterdir()
            line = command(deployment.url, tokenizer, folder, isl, osl, concurrency, requests, warmup)
            subprocess.run(line, stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=True)
        result = json.loads((folder / "profile_export_aiperf.json").read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    done, failed = (int((result.get(name) or {}).get("avg", 0)) for name in ("request_count", "error_request_count"))
    tokens = result["output_sequence_length"]
    for name in ("time_to_first_token", "inter_token_latency", "request_latency", "output_token_throughput"):
        print(f"{name}: " + ", ".join(f"{key} {result[name][key]}" for key in ("avg", "p50", "p90", "p99", "unit")
                                      if result[name].get(key) is not None))
    exact = tokens["min"] == tokens["max"] == osl
    passed = done == requests and failed == 0 and exact
    print(f"{'PASSED' if passed else 'FAILED'}: {done} of {requests} requests done, {failed} failed, answers of "
          f"{tokens['min']:.0f} to {tokens['max']:.0f} tokens ({osl} asked for)")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
