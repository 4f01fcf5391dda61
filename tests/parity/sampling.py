"""Generates the golden distributions of the sampling tests: the distribution of the next token, by numpy in float64.

    pip install numpy
    python tests/parity/sampling.py

Writes tests/parity/data/sampling.json. Each case has logits, parameters, the tokens so far and those that must not be
drawn; and the probability of every token that may be drawn, the most likely token, and the model's own log
probabilities. The Rust test compares exact probabilities, then draws.

The definitions are written independently here, in vLLM's order: bias and forbidden tokens; repetition penalty over prompt and
output, frequency and presence penalty over output; temperature, min-p, top-k, top-p over what top-k left. Cases in
which rounding to float32 could decide whether a token is kept are drawn again, so that two right implementations
cannot disagree.
"""

import json
import pathlib

import numpy as np

OUT = pathlib.Path(__file__).parent / "data" / "sampling.json"
CASES = 96
MARGIN = 1e-3
OFF = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}


class Unsure(Exception):
    """A case in which rounding might decide."""


def apart(values, limit):
    """Checks that no value is so close to the limit that rounding decides on which side it lies."""
    if np.any(np.abs(values - limit) < MARGIN):
        raise Unsure


def adjusted(case):
    logits = np.array(case["logits"], dtype=np.float64)
    for token, bias in case["logit_bias"]:
        logits[token] += bias
    logits[case["forbidden"]] = -np.inf
    seen = np.array(sorted(set(case["history"])), dtype=int)
    penalty = case["repetition_penalty"]
    if seen.size:
        apart(logits[seen], 0.0)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    output = np.bincount(case["history"][case["prompt_len"]:], minlength=logits.size)
    logits -= case["frequency_penalty"] * output
    logits -= case["presence_penalty"] * (output > 0)
    return logits


def distribution(case):
    """Probabilities of all tokens, and the most likely one."""
    logits = adjusted(case)
    order = np.argsort(-logits, kind="stable")
    finite = logits[order][np.isfinite(logits[order])]
    if finite.size < 2 or np.min(finite[:-1] - finite[1:]) < MARGIN:
        raise Unsure
    best = int(order[0])
    if case["temperature"] == 0.0:
        return np.eye(logits.size)[best], best
    weights = np.exp((logits - logits[best]) / case["temperature"])
    if case["min_p"] > 0.0:
        apart(weights, case["min_p"])
        weights[weights < case["min_p"]] = 0.0
    if case["top_k"] > 0:
        weights[order[case["top_k"]:]] = 0.0
    if case["top_p"] < 1.0:
        mass = np.cumsum(weights[order]) / weights.sum()
        apart(mass, case["top_p"])
        weights[order[int(np.argmax(mass >= case["top_p"])) + 1:]] = 0.0
    return weights / weights.sum(), best


def draw_case(random, index):
    """Every parameter alone, then all of them in any combination."""
    size = int(random.integers(4, 40))
    f32 = lambda value: float(np.float32(value))
    case = dict(OFF)
    case["logits"] = [f32(logit) for logit in random.normal(0.0, 2.0, size)]
    case["history"] = [int(token) for token in random.integers(0, size, int(random.integers(1, 12)))]
    case["prompt_len"] = int(random.integers(0, len(case["history"]) + 1))
    case["logit_bias"], case["forbidden"] = [], []
    choices = {
        "temperature": lambda: f32(random.uniform(0.5, 2.0)),
        "top_p": lambda: f32(random.uniform(0.3, 0.99)),
        "top_k": lambda: int(random.integers(1, size + 1)),
        "min_p": lambda: f32(random.uniform(0.01, 0.3)),
        "presence_penalty": lambda: f32(random.uniform(-2.0, 2.0)),
        "frequency_penalty": lambda: f32(random.uniform(-2.0, 2.0)),
        "repetition_penalty": lambda: f32(random.uniform(0.5, 2.0)),
        "logit_bias": lambda: [
            [int(token), f32(random.uniform(-5.0, 5.0))] for token in random.choice(size, 2, replace=False)
        ],
        "forbidden": lambda: [int(token) for token in random.choice(size, 2, replace=False)],
    }
    names = list(choices)
    if index < len(names):
        wanted = [names[index]]
    else:
        wanted = [name for name in names if random.random() < 0.5]
    for name in wanted:
        case[name] = choices[name]()
    if index >= len(names) and random.random() < 0.1:
        case["temperature"] = 0.0
    return case


def make(random, index):
    while True:
        case = draw_case(random, index)
        try:
            probabilities, best = distribution(case)
        except Unsure:
            continue
        raw = np.array(case["logits"])
        kept = np.flatnonzero(probabilities)
        case["probabilities"] = [[int(token), float(probabilities[token])] for token in kept]
        case["best"] = best
        case["logprobs"] = (raw - np.log(np.sum(np.exp(raw)))).tolist()
        return case


def main():
    random = np.random.default_rng(20)
    cases = [make(random, index) for index in range(CASES)]
    OUT.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    print(f"{len(cases)} cases, numpy {np.__version__}")


if __name__ == "__main__":
    main()
