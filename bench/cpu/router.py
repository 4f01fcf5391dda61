"""The cost of the router: the latency that it adds to the first token, by stage, and its CPU time, for prompts of several
lengths.

    python3 bench/cpu/router.py DISAGG [TOKENS...]        # by default 200 3000 55000

One decode worker on a simulated device that takes no time. Chat requests, one at a time, every prompt new. Stages are the
router's own metric `disagg_router_request_stage_seconds`; `worker` is the time from the request to the worker until its first
token, which is not the router's except for encoding and sending the prompt. `rest` is what the client waits for beyond all
stages: HTTP, and writing the first event. The tokenizer is the demo model's.
"""

import http.client
import json
import random
import re
import sys
import time

from processes import ROOT, Deployment, cpu_seconds, get, machine, percentile

PORT, WORKER = 8191, 9191
STAGES = ("read", "parse", "text_queue", "render", "tokenize", "choose", "worker")
WORDS = sorted(set(re.findall(r"[a-z]{2,12}", (ROOT / "ARCHITECTURE.md").read_text().lower())))


def prompt(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def first_token(text):
    """Seconds to the first token, and the number of tokens in the prompt."""
    body = json.dumps({
        "model": "bench", "messages": [{"role": "user", "content": text}], "max_tokens": 2, "temperature": 0,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    })
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    connection.connect()
    begun = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(response.read().decode())
    first, tokens = None, None
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise RuntimeError(event)
        if event["choices"] and event["choices"][0]["delta"].get("content"):
            first = first or time.perf_counter() - begun
        if event.get("usage"):
            tokens = event["usage"]["prompt_tokens"]
    connection.close()
    # Both tokens may be bytes of one incomplete character; then no text is sent.
    return first or time.perf_counter() - begun, tokens


def stages():
    """Sum and count of each stage so far."""
    found = re.findall(
        r'^disagg_router_request_stage_seconds_(sum|count)\{stage="(\w+)"\} (\S+)$', get(PORT + 1, "/metrics").decode(), re.M)
    return {(stage, what): float(value) for what, stage, value in found}


def main():
    disagg, *sizes = sys.argv[1:]
    sizes = [int(size) for size in sizes] or [200, 3000, 55000]
    rng = random.Random(7)
    with Deployment(disagg) as deployment:
        deployment.model()
        deployment.worker(
            "decode", WORKER, "sim:prefill-tokens-per-second=1000000000,decode-step-ms=0", "--max-model-len", 65536,
            "--max-num-batched-tokens", 65536, "--kv-cache-bytes", "1GiB")
        router = deployment.router(PORT, WORKER)
        print(f"{machine()}; times in µs")
        print("| tokens | requests | " + " | ".join(STAGES) + " | rest | added, mean | p50 of the first token | CPU of the router |")
        print("|" + "---|" * (len(STAGES) + 6))
        for size in sizes:
            # The number of words that gives about that many tokens, from one trial.
            _, tokens = first_token(prompt(rng, size // 2))
            words = max(1, size * (size // 2) // tokens)
            count = max(30, min(1000, 1_000_000 // size))
            texts = [prompt(rng, words) for _ in range(count + 5)]
            for text in texts[:5]:
                first_token(text)
            before, cpu = stages(), cpu_seconds(router)
            results = [first_token(text) for text in texts[5:]]
            after, cpu = stages(), cpu_seconds(router) - cpu
            mean = {}
            for stage in STAGES:
                took, times = (after[stage, what] - before[stage, what] for what in ("sum", "count"))
                if times != count:
                    raise RuntimeError(f"{stage}: {times} times in {count} requests")
                mean[stage] = took / count * 1e6
            total = sum(first for first, _ in results) / count * 1e6
            rest = total - sum(mean.values())
            tokens = sum(tokens for _, tokens in results) / count
            row = [f"{tokens:.0f}", str(count), *(f"{mean[stage]:.0f}" for stage in STAGES), f"{rest:.0f}",
                   f"{total - mean['worker']:.0f}", f"{percentile([f for f, _ in results], .5) * 1e6:.0f}", f"{cpu / count * 1e6:.0f}"]
            print("| " + " | ".join(row) + " |", flush=True)


main()
