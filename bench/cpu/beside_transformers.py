"""The CPU backend beside Hugging Face transformers, on the same files and the same cores.

    pip install torch transformers
    cargo build --profile ci -p disagg-worker --example cpu_steps
    python3 bench/cpu/beside_transformers.py target/ci/examples/cpu_steps

Makes a folder of random bf16 weights of the Qwen3-0.6B shape, and then runs both in turn, each in a process of its own: the
prefill of one prompt of 512 tokens with the logits of its last token, and decode steps behind it. transformers computes in
float32, with its default attention and a KV cache. The fastest of all runs counts for each, since what else the machine does
can only make a run slower. DISAGG_BENCH_FOLDER keeps the folder; ROUNDS sets how often both take their turn.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

TOKENS = 512
STEPS = 16
RUNS = 5
ROUNDS = int(os.environ.get("ROUNDS", "3"))

SHAPE = dict(
    vocab_size=151936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40960,
    rms_norm_eps=1e-6,
    rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    tie_word_embeddings=True,
)


def make(folder):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    Qwen3ForCausalLM(Qwen3Config(**SHAPE)).to(torch.bfloat16).save_pretrained(folder)


def transformers(folder):
    import torch
    from transformers import Qwen3ForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    start = time.perf_counter()
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    load = time.perf_counter() - start
    prompt = torch.tensor([[token * 7919 % 50000 for token in range(TOKENS)]])
    prefill = decode = float("inf")
    with torch.inference_mode():
        for _ in range(RUNS):
            start = time.perf_counter()
            out = model(prompt, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
            prefill = min(prefill, time.perf_counter() - start)
            for _ in range(STEPS):
                start = time.perf_counter()
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
                decode = min(decode, time.perf_counter() - start)
    figures = {
        "load_s": round(load, 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "threads": torch.get_num_threads(),
        "prefill_tokens_per_s": round(TOKENS / prefill, 1),
        "decode_tokens_per_s": round(1 / decode, 2),
    }
    print(json.dumps(figures))


def main(steps):
    with tempfile.TemporaryDirectory() as own:
        folder = pathlib.Path(os.environ.get("DISAGG_BENCH_FOLDER", own))
        if not (folder / "config.json").exists():
            subprocess.run([sys.executable, __file__, "--make", folder], check=True)
        commands = {
            "disagg": [steps, folder, str(TOKENS), str(RUNS)],
            "transformers": [sys.executable, __file__, "--transformers", folder],
        }
        for _ in range(ROUNDS):
            for name, command in commands.items():
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                load = " ".join(f"{value:.1f}" for value in os.getloadavg())
                print(f"{name:13} {done.stdout.splitlines()[-1]}  load average {load}", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--make", folder]:
            make(folder)
        case ["--transformers", folder]:
            transformers(folder)
        case [steps]:
            main(steps)
        case _:
            sys.exit(__doc__)
