"""The original's load over HTTP: prompts of random token ids, streamed answers of a fixed length, N requests in flight.

    python3 bench/gpu/load.py --url http://127.0.0.1:8181 --model MODEL --isl 3000 --osl 150 --concurrency 1,10,32,64

Standard library only. Prints one line per concurrency: requests per second, time to the first token (TTFT), time per
output token after it (TPOT), and time between tokens (ITL), in milliseconds. Every prompt is new, so that no prefix is
ever cached. The first requests of a row are a warm-up and are not counted.
"""

import argparse
import asyncio
import json
import random
import time
from urllib.parse import urlparse


async def one(host, port, model, prompt, osl):
    """Time of each token event and of the end, in seconds since the request began."""
    body = json.dumps({
        "model": model, "prompt": prompt, "max_tokens": osl, "ignore_eos": True, "temperature": 0, "stream": True,
    }).encode()
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nconnection: close\r\n"
        + f"content-length: {len(body)}\r\n\r\n".encode() + body
    )
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError((status + await reader.read()).decode(errors="replace")[:500])
    times, failed = [], None
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            break
        event = json.loads(line[6:])
        if "error" in event:
            failed = event["error"]
        elif event.get("choices"):
            times.append(time.perf_counter() - start)
    writer.close()
    if failed or not times:
        raise RuntimeError(f"request failed: {failed}")
    return times, time.perf_counter() - start


def percentile(values, share):
    values = sorted(values)
    return 1e3 * values[min(len(values) - 1, int(len(values) * share))]


async def row(args, host, port, concurrency):
    rng = random.Random(concurrency)
    count = max(args.min_requests, concurrency * args.rounds)
    warmup = min(concurrency, 4)
    prompts = [[rng.randrange(3, args.vocab) for _ in range(args.isl)] for _ in range(count + warmup)]
    await asyncio.gather(*(one(host, port, args.model, p, 4) for p in prompts[:warmup]))
    pending = iter(prompts[warmup:])
    results = []

    async def client():
        for prompt in pending:
            results.append(await one(host, port, args.model, prompt, args.osl))

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    wall = time.perf_counter() - start
    ttft = [times[0] for times, _ in results]
    tpot = [(total - times[0]) / (args.osl - 1) for times, total in results]
    itl = [b - a for times, _ in results for a, b in zip(times, times[1:])]
    print(
        f"concurrency {concurrency}: {count / wall:.2f} req/s, {count * args.osl / wall:.0f} tok/s, "
        f"TTFT p50 {percentile(ttft, .5):.1f} p99 {percentile(ttft, .99):.1f}, TPOT p50 {percentile(tpot, .5):.2f}, "
        f"ITL p50 {percentile(itl, .5):.2f} p99 {percentile(itl, .99):.2f} ms ({count} requests, {len(itl)} gaps)",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://127.0.0.1:8181")
    parser.add_argument("--model", required=True)
    parser.add_argument("--isl", type=int, default=3000)
    parser.add_argument("--osl", type=int, default=150)
    parser.add_argument("--vocab", type=int, default=250, help="token ids are drawn below this")
    parser.add_argument("--concurrency", default="1,10,32,64")
    parser.add_argument("--rounds", type=int, default=3, help="requests per client")
    parser.add_argument("--min-requests", type=int, default=16)
    args = parser.parse_args()
    url = urlparse(args.url)
    for concurrency in args.concurrency.split(","):
        asyncio.run(row(args, url.hostname, url.port, int(concurrency)))


main()
