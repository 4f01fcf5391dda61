"""Starting from real files on a GPU: how long it takes, warm and cold, and whether the result equals transformers'.

    python3 bench/gpu/files.py DISAGG [FOLDER FOR THE MODEL]

Writes 16.1 GB of safetensors in the Llama-3.1-8B shape, once (the weights are random bf16 numbers, so the text is
nonsense, but the files are real). Then it starts a worker with an emptied page cache and three times with the files in the
page cache, and measures how long reading the files alone takes in both cases. Then it compares greedy tokens and the 20
largest log-probabilities of prompts of 7 to 5,000 tokens with those of transformers in float32 on the same files, and shows
how far transformers in bfloat16 is from them.

Needs root (to empty the page cache), PyTorch, transformers and safetensors.
"""

import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
SHARDS = 4
PROMPT_TOKENS = (7, 64, 500, 1000, 2048, 3000, 5000)
NEW_TOKENS = 4
READY_MAX_S = 180
ROUTER = "http://127.0.0.1:8101"


def write_model(folder):
    """The config.json and tokenizer of the other benchmarks, and weights."""
    subprocess.run([sys.executable, HERE / "model.py", folder], check=True)
    config = json.loads((folder / "config.json").read_text())
    hidden, mlp, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        shapes |= {
            f"{name}input_layernorm.weight": (hidden,), f"{name}post_attention_layernorm.weight": (hidden,),
            f"{name}self_attn.q_proj.weight": (hidden, hidden), f"{name}self_attn.k_proj.weight": (kv, hidden),
            f"{name}self_attn.v_proj.weight": (kv, hidden), f"{name}self_attn.o_proj.weight": (hidden, hidden),
            f"{name}mlp.gate_proj.weight": (mlp, hidden), f"{name}mlp.up_proj.weight": (mlp, hidden),
            f"{name}mlp.down_proj.weight": (hidden, mlp),
        }
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    generator = torch.Generator("cuda").manual_seed(1)
    names, index = list(shapes), {}
    per_shard = -(-len(names) // SHARDS)
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {}
        for name in names[shard * per_shard:(shard + 1) * per_shard]:
            if name.endswith("norm.weight"):
                tensor = torch.ones(shapes[name], device="cuda")
            else:
                tensor = torch.randn(shapes[name], device="cuda", generator=generator) * 0.02
            tensors[name] = tensor.to(torch.bfloat16).cpu()
            index[name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def empty_page_cache():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def read_files(folder):
    """Seconds to read all weights, all files at once."""
    def read(path):
        with open(path, "rb", buffering=0) as file:
            buffer = bytearray(8 << 20)
            while file.readinto(buffer):
                pass

    begun = time.monotonic()
    threads = [threading.Thread(target=read, args=(path,)) for path in folder.glob("*.safetensors")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - begun


class Process:
    """A process of disagg and its log."""

    def __init__(self, *command):
        self.log = tempfile.NamedTemporaryFile(suffix=".log")
        self.begun = time.monotonic()
        self.process = subprocess.Popen([str(part) for part in command], stderr=self.log, stdout=self.log)

    def text(self):
        return re.sub(r"\x1b\[[0-9;]*m", "", pathlib.Path(self.log.name).read_text())

    def wait_for(self, words):
        """Seconds from the start until the log says it."""
        while words not in self.text():
            if self.process.poll() is not None or time.monotonic() - self.begun > READY_MAX_S:
                raise SystemExit(f"not ready:\n{self.text()[-3000:]}")
            time.sleep(0.01)
        return time.monotonic() - self.begun

    def memory(self):
        """Anonymous resident memory in MiB, which excludes the page cache."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024

    def end(self):
        self.process.terminate()
        self.process.wait(30)


def worker(disagg, folder):
    return Process(disagg, "worker", "--model", folder, "--role", "both", "--listen", "127.0.0.1:9001",
                   "--device", "cuda:0", "--max-model-len", "8192")


def start(disagg, folder, what):
    process = worker(disagg, folder)
    seconds = process.wait_for("worker is ready")
    loaded = re.findall(r"[\d.]+ GB of weights.*", process.text())
    print(f"{what:34} {seconds:6.2f} s   {process.memory():6.0f} MiB anonymous   {loaded[-1] if loaded else ''}")
    process.end()
    return seconds


def ask(model, prompt):
    """Greedy tokens, and the 20 largest log-probabilities at each."""
    body = {"model": model, "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "logprobs": 20,
            "ignore_eos": True}
    request = urllib.request.Request(f"{ROUTER}/v1/completions", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    choice = json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["logprobs"]

    def token(text):
        return int(text.strip().removeprefix("w"))

    return ([token(text) for text in choice["tokens"]],
            [{token(text): value for text, value in top.items()} for top in choice["top_logprobs"]])


def answers(disagg, folder, prompts):
    served = worker(disagg, folder)
    router = Process(disagg, "router", "--worker", "127.0.0.1:9001", "--listen", ROUTER.removeprefix("http://"))
    served.wait_for("worker is ready")
    models = []
    while not models:
        if router.process.poll() is not None or time.monotonic() - router.begun > READY_MAX_S:
            raise SystemExit(f"no model at the router:\n{router.text()[-3000:]}")
        try:
            models = json.load(urllib.request.urlopen(f"{ROUTER}/v1/models", timeout=5))["data"]
        except OSError:
            pass
        time.sleep(0.05)
    results = [ask(models[0]["id"], prompt) for prompt in prompts]
    router.end()
    served.end()
    return results


@torch.inference_mode()
def logprobs(folder, dtype, prompts, answered):
    """transformers' log-probabilities at the positions of our tokens: a tensor [new tokens, vocabulary] for each prompt."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = False
    begun = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cuda:0")
    print(f"transformers has loaded in {time.monotonic() - begun:.1f} s as {dtype}")
    result = []
    for prompt, (tokens, _) in zip(prompts, answered):
        ids = torch.tensor([prompt + tokens[:-1]], device="cuda:0")
        result.append(model(ids, logits_to_keep=len(tokens)).logits[0].float().log_softmax(-1).cpu())
    del model
    torch.cuda.empty_cache()
    return result


def compare(prompts, answered, exact, rounded):
    """Prints a line for each prompt; true if our tokens are the reference's, except for ties within rounding."""
    good = True
    print("tokens   greedy tokens equal   log-probabilities against f32, max / mean: ours       transformers bf16")
    for prompt, (tokens, tops), want, peer in zip(prompts, answered, exact, rounded):
        ours, theirs = [], []
        for step, (token, top) in enumerate(zip(tokens, tops)):
            ours += [abs(value - want[step, id].item()) for id, value in top.items()]
            theirs += (peer[step] - want[step])[list(top)].abs().tolist()
            # A token that is not the likeliest one must be within rounding of it.
            good &= (want[step].max() - want[step, token]).item() <= 2 * max(theirs)
        equal = sum(token == row.argmax().item() for token, row in zip(tokens, want))
        mean = lambda values: sum(values) / len(values)
        print(f"{len(prompt):6}   {equal} of {len(tokens)}   {'':40} {max(ours):.3f} / {mean(ours):.4f}   "
              f"{max(theirs):.3f} / {mean(theirs):.4f}")
        good &= mean(ours) <= 1.5 * mean(theirs)
    return good


def main():
    disagg = pathlib.Path(sys.argv[1]).resolve()
    folder = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else pathlib.Path(tempfile.mkdtemp()) / "llama-8b"
    if not (folder / "model.safetensors.index.json").exists():
        begun = time.monotonic()
        write_model(folder)
        print(f"wrote {folder} in {time.monotonic() - begun:.0f} s")
    torch.cuda.empty_cache()
    # The first start compiles kernels and times algorithms, which is not what is measured here.
    start(disagg, folder, "first start, kernels compiled")
    empty_page_cache()
    print(f"reading the files alone, cold      {read_files(folder):6.2f} s")
    empty_page_cache()
    start(disagg, folder, "start to ready, cold page cache")
    print(f"reading the files alone, warm      {read_files(folder):6.2f} s")
    for _ in range(3):
        start(disagg, folder, "start to ready, warm page cache")
    numbers = random.Random(1)
    prompts = [[numbers.randrange(128000) for _ in range(count)] for count in PROMPT_TOKENS]
    answered = answers(disagg, folder, prompts)
    exact = logprobs(folder, torch.float32, prompts, answered)
    rounded = logprobs(folder, torch.bfloat16, prompts, answered)
    if not compare(prompts, answered, exact, rounded):
        raise SystemExit("FAILED: not what transformers computes")


if __name__ == "__main__":
    main()
