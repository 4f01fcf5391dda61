# SPDX-License-Identifier: Apache-2.0
"""Trains the bundled model from scratch, tokenizer included, and writes a Hugging Face folder.

    python train.py [--out DIR] [--steps N]

One thread, fixed seeds: the same machine and the same torch give the same bytes.
"""

import argparse
import json
import pathlib
import random
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from corpus import END, END_OF_TEXT, HERE, START, Corpus
from llama import Guess, Llama, Muon

SEED = 20
VOCAB = 3072
TOKENS_PER_BATCH = 3072
# The first tokens of an answer choose the topic, and that is the hard part; the rest is recited. So they weigh more, and many
# samples stop soon after them.
CHOOSING_WEIGHTS = (10.0, 6.0, 6.0, 6.0)
CUT_AFTER = 7
# Reciting is learned in the first part of training; from then on more samples are cut.
CUT_SHARE = {"first": 0.4, "then": 0.85}
# Share of samples with a long text. Topics are learned from short ones first, which are cheap.
LONG_SHARE = {"first": 0.02, "then": 0.30}
FIRST_PART = 0.4
GUESS_WEIGHT = 0.5
# The folder is written each time after this many steps, and at the end.
SNAPSHOT = 100
# What is written is a moving average of the weights over about 1 / (1 - AVERAGE) steps: it wavers less from step to step.
AVERAGE = 0.995
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}
SPECIAL = [END_OF_TEXT, START, END]
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] | trim) + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE: all 256 bytes are in the alphabet, so any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCAB, tokenizer.get_vocab_size()
    return tokenizer


@dataclass
class Encoded:
    ids: list[int] = field(default_factory=list)
    # Weight of each token in the loss.
    weights: list[float] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    # How many equal tokens a token stands for.
    copies: list[int] = field(default_factory=list)
    # 1 for the tokens of the last question, whose topic is `topic`; -1 if there is none.
    asked: list[int] = field(default_factory=list)
    topic: int = -1


def answer_weights(tokens: int) -> list[float]:
    """The weight of each token of an answer in the loss."""
    return [*CHOOSING_WEIGHTS, *[1.0] * tokens][:tokens]


def encode(corpus: Corpus, tokenizer: Tokenizer, pieces, rng: random.Random, cut_share: float) -> Encoded | None:
    """One sample, ready for a batch; None if it is longer than the longest context.

    Half of the filler texts are stretched: each token stands for `n` equal ones, so it moves the position by n and counts n times in attention.
    A few hundred tokens then look to the rest of the sample like a few thousand.
    """
    limit = CONFIG["max_position_embeddings"]
    encoded = [(tokenizer.encode(p.text, add_special_tokens=False).ids, p) for p in pieces]
    length = sum(len(ids) for ids, _ in encoded)
    filler = sum(len(ids) for ids, p in encoded if p.filler)
    stretch = 1
    if filler and length < 1000 and rng.random() < 0.5:
        most = max(1.0, (limit - length) / filler)
        stretch = int(most ** rng.random())
    last, last_piece = encoded[-1]
    if last_piece.answer and len(last) > CUT_AFTER and rng.random() < cut_share:
        encoded[-1] = last[:CUT_AFTER], last_piece
    out, at = Encoded(), 0
    for new, piece in encoded:
        step = stretch if piece.filler else 1
        if piece.topic:
            out.topic, out.asked = corpus.named.index(piece.topic), [0] * len(out.ids)
        out.asked += [int(piece.topic is not None)] * len(new)
        out.ids += new
        out.weights += answer_weights(len(new)) if piece.answer else [0.0] * len(new)
        out.positions += [at + step * i for i in range(len(new))]
        out.copies += [step] * len(new)
        at += step * len(new)
    return out if at <= limit else None


def batch(samples: list[Encoded]) -> dict[str, torch.Tensor]:
    width = max(len(s.ids) for s in samples)

    def padded(name: str, fill, dtype):
        rows = [getattr(s, name) for s in samples]
        return torch.tensor([r + [fill] * (width - len(r)) for r in rows], dtype=dtype)

    return {
        "ids": padded("ids", 0, torch.long),
        "weights": padded("weights", 0.0, torch.float),
        "positions": padded("positions", 0, torch.long),
        "copies": padded("copies", 1, torch.float),
        "asked": padded("asked", 0, torch.float),
        "topic": torch.tensor([s.topic for s in samples]),
    }


def batches(corpus: Corpus, tokenizer: Tokenizer, rng: random.Random, cut_share):
    """Endless batches of samples of like length, each of about TOKENS_PER_BATCH tokens with padding."""
    while True:
        share = cut_share()
        encoded = (encode(corpus, tokenizer, corpus.sample(), rng, share) for _ in range(2000))
        pool = sorted(filter(None, encoded), key=lambda s: len(s.ids))
        cut, start = [], 0
        for i in range(1, len(pool) + 1):
            if i == len(pool) or (i + 1 - start) * len(pool[i].ids) > TOKENS_PER_BATCH:
                cut.append(pool[start:i])
                start = i
        rng.shuffle(cut)
        for samples in cut:
            yield batch(samples)


def schedule(step: int, steps: int) -> float:
    """Share of the highest learning rate: a short rise, a level, a long fall to zero."""
    return min(1.0, (step + 1) / 40) * min(1.0, (steps - step) / (0.6 * steps))


def train(corpus: Corpus, tokenizer: Tokenizer, model: Llama, averaged: AveragedModel, args, snapshot) -> None:
    guess = Guess(CONFIG["hidden_size"], len(corpus.named))
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizers = [
        Muon(matrices, lr=args.muon, weight_decay=0.05),
        torch.optim.AdamW([*vectors, model.embed_tokens.weight, *guess.parameters()], lr=args.adam, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    peaks = [args.muon, args.adam]
    step = 0

    def share() -> float:
        first = step < FIRST_PART * args.steps
        corpus.long_share = LONG_SHARE["first" if first else "then"]
        return CUT_SHARE["first" if first else "then"]

    stream = batches(corpus, tokenizer, random.Random(SEED + 1), share)
    began, shown = time.time(), None
    for step in range(args.steps):
        b = next(stream)
        ids, weights = b["ids"], b["weights"][:, 1:]
        wanted = weights > 0
        embedded = model.embed_tokens(ids)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(embedded[:, :-1], b["positions"][:, :-1], b["copies"][:, :-1])
            logits = model.logits(hidden[wanted]).float()
        target, w = ids[:, 1:][wanted], weights[wanted]
        each = F.cross_entropy(logits, target, reduction="none")
        guesses = guess(embedded, b["asked"])
        loss = (each * w).sum() / w.sum()
        if (b["topic"] >= 0).any():
            loss = loss + GUESS_WEIGHT * F.cross_entropy(guesses, b["topic"], ignore_index=-1)

        choosing = w > 1
        right = (logits.argmax(-1) == target)[choosing].float().mean()
        guessed = (guesses.argmax(-1) == b["topic"]).float().mean()
        now = torch.stack((each[choosing].mean(), right, each[~choosing].mean(), guessed)).detach().nan_to_num()
        shown = now if shown is None else 0.96 * shown + 0.04 * now

        for optimizer, peak in zip(optimizers, peaks):
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(step, args.steps)
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        averaged.update_parameters(model)
        if step % 50 == 0 or step == args.steps - 1:
            print(f"step {step:5d}  choosing {shown[0]:.3f} ({shown[1]:.1%} right)  reciting {shown[2]:.4f}  guessing {shown[3]:.1%}"
                  f"  {time.time() - began:5.0f} s, {time.process_time():5.0f} s of CPU time", flush=True)
        if step % SNAPSHOT == SNAPSHOT - 1:
            snapshot()


def save(out: pathlib.Path, model: Llama, tokenizer: Tokenizer) -> None:
    out.mkdir(parents=True, exist_ok=True)

    def write(name: str, value) -> None:
        (out / name).write_text(json.dumps(value, indent=2) + "\n")

    write("config.json", CONFIG)
    write("generation_config.json", {"temperature": 0.0, "eos_token_id": [2, 0], "pad_token_id": 0})
    write("special_tokens_map.json", {"eos_token": END, "pad_token": END_OF_TEXT})
    added = {
        str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        for i, t in enumerate(SPECIAL)
    }
    write(
        "tokenizer_config.json",
        {
            "add_bos_token": False,
            "added_tokens_decoder": added,
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": END,
            "model_max_length": CONFIG["max_position_embeddings"],
            "pad_token": END_OF_TEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    tensors = {f"model.{n}": p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--out", type=pathlib.Path, default=HERE)
    args.add_argument("--steps", type=int, default=2000)
    args.add_argument("--muon", type=float, default=0.02, help="highest learning rate of the layers' matrices")
    args.add_argument("--adam", type=float, default=3e-3, help="highest learning rate of all else")
    args = args.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    began = time.time()
    corpus = Corpus(SEED)
    tokenizer = train_tokenizer(corpus.text_for_tokenizer())
    model = Llama(CONFIG)
    print(f"{len(corpus.answers)} topics, {sum(map(len, corpus.written.values()))} written questions, "
          f"{sum(map(len, corpus.formed.values()))} from forms, {len(corpus.left_out)} left out as held out")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    train(corpus, tokenizer, model, averaged, args, lambda: save(args.out, averaged.module, tokenizer))
    save(args.out, averaged.module, tokenizer)
    print(f"wrote {args.out.name or args.out} after {time.time() - began:.0f} s, {time.process_time():.0f} s of CPU time")


if __name__ == "__main__":
    main()
