"""Greedy answers to a fixed list of prompts of 3000 tokens, one at a time; writes them and prints the time to the first token.

    python3 bench/gpu/answers.py URL FILE [COUNT]             # by default 12

Standard library only.
"""

import json
import random
import sys
import time
import urllib.request

url, path = sys.argv[1:3]
count = int(sys.argv[3]) if len(sys.argv) > 3 else 12
rng = random.Random(5)
answers, firsts = [], []
for _ in range(count):
    prompt = [rng.randrange(3, 128000) for _ in range(3000)]
    body = {"model": "m8b", "prompt": prompt, "max_tokens": 32, "ignore_eos": True, "temperature": 0, "stream": True}
    request = urllib.request.Request(
        url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    start, text, first = time.perf_counter(), "", None
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                sys.exit(f"{event['error']}")
            if event.get("choices"):
                first = first or time.perf_counter() - start
                text += event["choices"][0]["text"]
    answers.append(text)
    firsts.append(first * 1e3)
json.dump(answers, open(path, "w"))
firsts = sorted(firsts[2:])
print(f"TTFT p50 {firsts[len(firsts) // 2]:.1f} ms, lowest {firsts[0]:.1f}, highest {firsts[-1]:.1f}")
