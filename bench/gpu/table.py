"""The milestones of NOTEBOOK.md beside what was measured, each as a ratio to what its card can do at most.

    python3 bench/gpu/table.py FOLDER      # the folder for logs that all.sh was given

Prints a table in Markdown. What a card can do is measured in the same run: a copy on the device for what memory bounds, a
product 8192^3 for what arithmetic bounds. The limits of a Llama-3.1-8B shape in 16 bits:

    prefill of n tokens     products and causal attention at the speed of the large product
    decode step             weights (without the embedding), keys and values of all contexts at the speed of the copy
    requests a second       1 / (prefill of 3000 + 149 decode steps of the batch / batch): prompts and decodes in turn, each
                            at its limit

vLLM's figures and the milestones are for an H200 whose copy ran at 4.3 TB/s and product at 753 TFLOP/s. A ratio flatters
the slower card, since faster memory does not shorten the time spent waiting for something else. So the last columns show
what an H200 would give if all the time that this card took beyond its limit were such waiting; the truth lies between.
"""

import pathlib
import re
import sys

LAYERS, HIDDEN, MLP, VOCAB, KV = 32, 4096, 14336, 128256, 1024
LAYER = HIDDEN * (2 * HIDDEN + 2 * KV + 3 * MLP)
H200 = (4.3e12, 753e12)


def prefill(card, tokens):
    return 1e3 * (2 * LAYERS * LAYER * tokens + 2 * LAYERS * HIDDEN * tokens**2) / card[1]


def decode(card, batch, context):
    return 1e3 * 2 * (LAYERS * LAYER + VOCAB * HIDDEN + 2 * LAYERS * KV * batch * context) / card[0]


def rate(card, batch):
    return 1e3 / (prefill(card, 3000) + 149 * decode(card, batch, 3075) / batch)


logs = pathlib.Path(sys.argv[1])
steps, http = ((logs / name).read_text() for name in ("steps.txt", "http.txt"))


def found(text, pattern):
    match = re.search(pattern, text)
    return float(match[1]) if match else float("nan")


card = (found(steps, r"copy ([\d.]+) TB/s") * 1e12, found(steps, r"product 8192³ (\d+) TFLOP") * 1e12)
ROWS = [
    # name, limit on a card, ours, vLLM, first, then, aim; larger is better
    ("TTFT, 3000 tokens, over HTTP, ms", lambda c: prefill(c, 3000), found(http, r"concurrency 1:.*TTFT p50 ([\d.]+)"),
     78.1, 77, 72, 66, False),
    ("prefill 16,384, ms", lambda c: prefill(c, 16384), found(steps, r"prefill 16384, timed choice: ([\d.]+)"),
     521, 620, 510, 450, False),
]
for batch, *wanted in ((1, 4.93, 4.7, 4.3, 3.9), (10, 6.28, 5.8, 5.2, 4.7), (64, 11.5, 11.3, 10.5, 9.7)):
    ours = found(steps, rf"context 3000 batch {batch}, chosen form: ([\d.]+)")
    ROWS.append((f"decode step, 3k context, batch {batch}, ms", lambda c, b=batch: decode(c, b, 3000), ours, *wanted, False))
for batch, *wanted in ((10, 6.09, 6.3, 6.8, 8), (32, 9.13, 9.4, 10, 11.5), (64, 10.15, 10.4, 11, 12.5)):
    ours = found(http, rf"concurrency {batch}: ([\d.]+) req/s")
    ROWS.append((f"3000/150, concurrency {batch}, req/s", lambda c, b=batch: rate(c, b), ours, *wanted, True))

def reached(ours, wanted, more):
    """The last of first, then, aim that `ours` is as good as."""
    labels = [label for label, want in zip(("first", "then", "aim"), wanted) if (ours >= want if more else ours <= want)]
    return labels[-1] if labels else "none"


print(f"This card: copy {card[0] / 1e12:.2f} TB/s, product {card[1] / 1e12:.0f} TFLOP/s.\n")
print("| | limit, this card | ours | of the limit | vLLM, of its limit | first / then / aim, of theirs | reached so "
      "| with the same excess on an H200 | reached so |")
print("|---|---|---|---|---|---|---|---|---|")
for name, limit, ours, vllm, *wanted, more in ROWS:
    here, there = limit(card), limit(H200)
    ratios = [want / there for want in wanted]
    if more:  # the excess is time a request
        carried = 1 / (1 / there + 1 / ours - 1 / here)
    else:
        carried = there + ours - here
    shown = " / ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"| {name} | {here:.2f} | {ours:.2f} | {ours / here:.2f} | {vllm:g}: {vllm / there:.2f} | {shown} | "
          f"{reached(ours / here, ratios, more)} | {carried:.2f} | {reached(carried, wanted, more)} |")
start = found(http, r"start to ready: ([\d.]+)")
print(f"| start to ready, s | | {start:.1f} | | 44 to 64 | 12 / 8 / 5 s | {reached(start, (12, 8, 5), False)} | | |")
