# SPDX-License-Identifier: Apache-2.0
"""Asks the bundled model the questions of heldout.json, with transformers and greedy decoding.

    python eval.py [--model DIR] [--verbose] [--report FILE]

Exits with 1 unless every fixed question passes on every held-out phrasing, in every setting, and the smoke checks pass.
The fresh words, the wider questions and the answers at temperature 1 are counted and not required.
"""

import argparse
import json
import pathlib
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from corpus import HERE, Corpus, normal

ASKED = json.loads((HERE / "heldout.json").read_text())
STORY = ASKED["story"]
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
FIRST_TURN = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello! I am the small demo model of disagg."}]
# Every setting is a way to wrap a question that should not change its answer.
SETTINGS = {
    "alone": lambda q: [{"role": "user", "content": q}],
    "with a system prompt": lambda q: [SYSTEM, {"role": "user", "content": q}],
    "as a second turn": lambda q: [*FIRST_TURN, {"role": "user", "content": q}],
    "after 200 filler words": lambda q: [{"role": "user", "content": "word " * 200 + q}],
    "after a story": lambda q: [{"role": "user", "content": f"{STORY}\n\n{q}"}],
}


class Model:
    def __init__(self, folder: pathlib.Path):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.stop = set(self.model.generation_config.eos_token_id)

    def ids(self, messages) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def generate(self, ids: list[int], limit: int = 80, sample: bool = False) -> tuple[str, bool]:
        """The text, and whether it ended by itself. NaN anywhere in the logits is an error."""
        out, past, step = [], None, torch.tensor([ids])
        for _ in range(limit):
            result = self.model(step, past_key_values=past, use_cache=True, logits_to_keep=0 if past is None else 1)
            past, logits = result.past_key_values, result.logits
            assert torch.isfinite(logits).all(), "logits that are not finite"
            last = logits[0, -1]
            token = int(torch.multinomial(last.softmax(-1), 1) if sample else last.argmax())
            if token in self.stop:
                return self.tokenizer.decode(out), True
            out.append(token)
            step = torch.tensor([[token]])
        return self.tokenizer.decode(out), False

    def chat(self, messages, **options) -> tuple[str, bool]:
        return self.generate(self.ids(messages), **options)


def holds(answer: str, must: list[str]) -> bool:
    return all(m.lower() in answer.lower() for m in must)


def fixed(model: Model, questions, verbose: bool) -> dict:
    """Pass counts by setting; every phrasing in every setting."""
    counts = {}
    for setting, wrap in SETTINGS.items():
        passed = total = 0
        for q in questions:
            for phrasing in q["phrasings"]:
                answer, ended = model.chat(wrap(phrasing))
                good = ended and holds(answer, q["must"])
                passed, total = passed + good, total + 1
                if verbose or not good:
                    print(f"  {'pass' if good else 'FAIL'}  [{setting}] {phrasing}\n        {answer}")
        counts[setting] = (passed, total)
    return counts


def sampled(model: Model, questions) -> tuple[int, int]:
    """The same alone, drawn at temperature 1: what a client gets that asks for no temperature."""
    torch.manual_seed(1)
    results = [
        ended and holds(answer, q["must"])
        for q in questions for p in q["phrasings"]
        for answer, ended in [model.chat(SETTINGS["alone"](p), sample=True)]
    ]
    return sum(results), len(results)


def wider(model: Model, questions, answers: dict[str, str], verbose: bool) -> tuple[int, int]:
    """One held-out question for most topics; counted, not required."""
    passed = 0
    for q in questions:
        answer, ended = model.chat(SETTINGS["alone"](q["ask"]))
        good = ended and answer == answers[q["topic"]]
        passed += good
        if verbose or not good:
            print(f"  {'pass' if good else 'miss'}  ({q['topic']}) {q['ask']}\n        {answer}")
    return passed, len(questions)


def smoke(model: Model) -> list[tuple[str, bool]]:
    """Prompts of thousands of tokens, and texts of any bytes."""
    checks = []

    def check(name: str, ids: list[int], must: list[str]) -> None:
        began = time.time()
        answer, ended = model.generate(ids)
        good = ended and holds(answer, must)
        checks.append((name, good))
        print(f"  {'pass' if good else 'FAIL'}  {name}: {len(ids)} tokens, {time.time() - began:.1f} s\n        {answer}")

    def user(text: str) -> list[int]:
        return model.ids([{"role": "user", "content": text}])

    check("a long story alone", user(STORY), ["long prompt"])
    check("4,000 tokens of one word, then a question", user("word " * 4000 + "What is prefill?"), ["first phase"])
    check("4,000 tokens of story, then a question", user((STORY + "\n") * (4000 // len(model.tokenizer(STORY)["input_ids"]) + 1) + "What is a handoff?"), ["moves a prefilled sequence"])
    check("4,000 tokens of story alone", user((STORY + "\n") * (4000 // len(model.tokenizer(STORY)["input_ids"]) + 1)), ["demo model"])
    check("8,000 tokens of one word, then a question", user("word " * 8000 + "What is decode?"), ["second phase"])
    check("text that is not English", user("Wie hei\u00dft du? \u4f60\u597d \U0001f600 \u00e9\u00e8\u00ea"), [])
    check("no chat template", model.tokenizer("What is prefill?\n", add_special_tokens=False)["input_ids"], ["first phase"])

    everything = "".join(map(chr, range(0x20, 0x3000, 7))) + "\U0001f600\x00\t\r\n"
    same = model.tokenizer.decode(model.tokenizer(everything, add_special_tokens=False)["input_ids"]) == everything
    checks.append(("any text survives encoding and decoding", same))
    return checks


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--model", type=pathlib.Path, default=HERE)
    args.add_argument("--verbose", action="store_true", help="print every answer, not only those that fail")
    args.add_argument("--report", type=pathlib.Path, help="write the counts here as JSON")
    args = args.parse_args()
    torch.set_num_threads(1)

    corpus = Corpus(0)
    seen = {normal(q) for group in (corpus.written, corpus.formed) for qs in group.values() for q in qs}
    fresh = [{**q, "must": next(f["must"] for f in ASKED["fixed"] if f["id"] == q["id"])} for q in ASKED["fresh"]]
    leaked = [h for h in [*corpus.held_out, *(normal(p) for q in fresh for p in q["phrasings"])] if h in seen]
    assert not leaked, f"held-out phrasings in the training data: {leaked}"

    model = Model(args.model)
    size = sum(f.stat().st_size for f in args.model.iterdir() if f.name.endswith((".json", ".jinja", ".safetensors")) and f.name != "heldout.json")
    print("fixed questions"); counts = fixed(model, ASKED["fixed"], args.verbose)
    print("the fixed questions in fresh words"); counts_fresh = fixed(model, fresh, args.verbose)
    print("at temperature 1"); counts_sampled = sampled(model, ASKED["fixed"])
    print("wider questions"); counts_wider = wider(model, ASKED["wider"], corpus.answers, args.verbose)
    print("smoke checks"); checks = smoke(model)

    report = {
        "bytes": size,
        "fixed": {k: f"{p}/{t}" for k, (p, t) in counts.items()},
        "fresh words": {k: f"{p}/{t}" for k, (p, t) in counts_fresh.items()},
        "fixed, temperature 1": "{}/{}".format(*counts_sampled),
        "wider": "{}/{}".format(*counts_wider),
        "smoke": f"{sum(ok for _, ok in checks)}/{len(checks)}",
    }
    print(json.dumps(report, indent=2))
    if args.report:
        args.report.write_text(json.dumps(report, indent=2) + "\n")
    if any(p < t for p, t in counts.values()) or not all(ok for _, ok in checks):
        sys.exit(1)


if __name__ == "__main__":
    main()
