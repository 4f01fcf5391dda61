"""The effect of a large handoff on streams that run on the same decode worker: the time between their tokens while the KV
of one long prompt arrives, compared with the time before.

    python3 bench/cpu/itl.py DISAGG [TOKENS] [ROUNDS]         # 55000 3

A prefill and a decode worker run on simulated devices, with 32 KiB of KV a token, as Llama-3.2-1B has in bf16. Eight
streams run; then the long prompt is sent, and the gaps until its first token count. Both workers, the router and this
script share the machine, so the long prompt's prefill also takes CPU time from the streams, unless the prefill worker is
niced (NICE=19 in the environment).
"""

import asyncio
import json
import os
import random
import sys
import time

from processes import Deployment, machine, percentile

PORT, DECODE, PREFILL = 8192, 9192, 9193
STREAMS = 8
DECODE_STEP_MS = 10
# How long the gaps before a handoff are recorded.
QUIET_S = 6.0


async def stream(prompt, max_tokens, times):
    """Appends the time of each token; returns the placement that the router reports."""
    body = json.dumps({
        "model": "bench", "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0, "stream": True,
    }).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT, limit=1 << 20)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nconnection: close\r\n"
        + f"content-length: {len(body)}\r\n\r\n".encode() + body)
    if b" 200 " not in await reader.readline():
        raise RuntimeError((await reader.read()).decode())
    placement = ""
    try:
        async for line in reader:
            if line.lower().startswith(b"x-disagg-placement:"):
                placement = line.split(b":", 1)[1].strip().decode()
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(event)
                times.append(time.perf_counter())
    finally:
        writer.close()
    return placement


def gaps(streams, begin, end):
    return [1e3 * (b - a) for times in streams for a, b in zip(times, times[1:]) if begin <= a and b <= end]


def line(what, values):
    return (f"{what}: ITL p50 {percentile(values, .5):.2f} p90 {percentile(values, .9):.2f} "
            f"p99 {percentile(values, .99):.2f} highest {max(values):.2f} ms ({len(values)} gaps)")


async def measure(tokens, rng):
    streams = [[] for _ in range(STREAMS)]
    running = [
        asyncio.create_task(stream([rng.randrange(300, 3000) for _ in range(50)], 20_000, times)) for times in streams]
    while min(map(len, streams)) < 20:
        await asyncio.sleep(0.05)
        for task in running:
            if task.done():
                task.result()
    quiet = time.perf_counter()
    await asyncio.sleep(QUIET_S)
    sent, long = time.perf_counter(), []
    # The first of the two tokens arrives when the handoff ends.
    placement = await stream([rng.randrange(300, 3000) for _ in range(tokens)], 2, long)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    if not placement.startswith("remote"):
        raise RuntimeError(f"placed {placement!r}")
    return gaps(streams, quiet, sent), gaps(streams, sent, long[0]), long[0] - sent


def main():
    disagg, *rest = sys.argv[1:]
    tokens, rounds = (int(rest[0]) if rest else 55_000), (int(rest[1]) if len(rest) > 1 else 3)
    # 8 layers, 8 KV heads of 64, keys and values; simulated pools keep 4 bytes an element.
    shape = {"num_hidden_layers": 8, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "hidden_size": 2048}
    with Deployment(disagg) as deployment:
        deployment.model(**shape)
        # Handoffs in flight may reserve at most half of a decode worker's pool.
        pool = ["--max-model-len", 65536, "--num-blocks", 2 * -(-tokens // 64) + 400]
        device = f"sim:prefill-tokens-per-second=20000,decode-step-ms={DECODE_STEP_MS}"
        deployment.worker("decode", DECODE, device, *pool)
        prefill = deployment.worker("prefill", PREFILL, device, *pool)
        if "NICE" in os.environ:
            os.setpriority(os.PRIO_PROCESS, prefill.pid, int(os.environ["NICE"]))
        deployment.router(PORT, DECODE, PREFILL)
        rng, before, during = random.Random(3), [], []
        print(f"{machine()}; {STREAMS} streams; a prompt of {tokens} tokens, {tokens * 32768 / 1e9:.2f} GB of KV, {rounds} times")
        for _ in range(rounds):
            quiet, loud, took = asyncio.run(measure(tokens, rng))
            before += quiet
            during += loud
            print(f"  {line('before', quiet)}\n  {line('during', loud)}; first token after {took:.2f} s", flush=True)
        print(line("before", before))
        print(line("during", during))
        for share in (.5, .99):
            change = percentile(during, share) / percentile(before, share) - 1
            print(f"p{share * 100:.0f}: {change:+.1%}")


main()
