"""Generates the golden data of the parity tests: small random models, and what Hugging Face transformers computes on them.

    pip install torch transformers
    python tests/parity/golden.py
    UPDATE_GOLDEN=1 cargo test -p disagg-worker --test parity tokenizer   # the folders' tokenizer files

Writes tests/parity/data/<case>/: a model folder, and golden.json with prompts, the greedy continuation of each, and
the logits of the first drawn token. The reference runs on the CPU in float32 with eager attention and without a KV
cache, so every step is computed from scratch.

Greedy decoding distinguishes implementations only if a small error cannot change a token and a large one must. So prompts
are drawn until, at every step, the two largest logits are more than MARGIN apart, and the continuation has at least
DISTINCT different tokens; both are checked again by the Rust test.
"""

import json
import pathlib
import shutil
import sys

import torch
import transformers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

DATA = pathlib.Path(__file__).parent / "data"
VOCAB = 512
# The last three ids are special tokens of the tokenizer; the others are drawn as prompts.
PROMPT_IDS = VOCAB - 3
STEPS = 32
MARGIN = 1e-3
DISTINCT = 16
ATTEMPTS = 200

# As small as possible while showing the differences between families; the first case is a little larger.
SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=2048,
    initializer_range=0.25,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=VOCAB - 1,
    pad_token_id=None,
)
MOE = dict(
    num_hidden_layers=3,
    mlp_only_layers=[1],
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    norm_topk_prob=False,
)
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}

# Keys of config.json that are changed after the model is saved: real files have them, but transformers does not write
# them. The reference is then the model that transformers reads back.
PATCHES = {
    # The file has a head other than the embedding, whatever the configuration says; and rope in its old and its new spelling.
    "llama-untied-head": {
        "tie_word_embeddings": True,
        "rope_parameters": None,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0},
    },
    # A sliding window that no layer uses.
    "qwen2-no-window": {
        "use_sliding_window": True,
        "sliding_window": 64,
        "max_window_layers": 2,
        "layer_types": None,
    },
    # Which layers have the window follows from `max_window_layers` alone, as in files of transformers 4.
    "qwen2-window": {"layer_types": None},
    # The key by which published models call it.
    "qwen3-moe": {"num_local_experts": None, "num_experts": 6},
}

# name: (model class, configuration, dtype of the file, prompt lengths, save_pretrained arguments)
CASES = {
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            **SMALL
            | dict(
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=3,
                initializer_range=0.15,
                tie_word_embeddings=False,
            ),
            rope_parameters=ROPE,
        ),
        torch.float32,
        [1, 15, 16, 17, 64, 100, 511, 700],
        {},
    ),
    "llama3-rope": (
        LlamaForCausalLM,
        LlamaConfig(**SMALL, rope_parameters=LLAMA3_ROPE, attention_bias=True, mlp_bias=True),
        torch.bfloat16,
        [5, 300, 700],
        {},
    ),
    "mistral": (
        MistralForCausalLM,
        MistralConfig(**SMALL, rope_parameters=ROPE, sliding_window=1024),
        torch.float16,
        [5, 130, 700],
        {},
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(**SMALL, rope_parameters=ROPE | {"rope_theta": 1000000.0}),
        torch.bfloat16,
        [5, 130, 700],
        # Several files with an index.
        {"max_shard_size": "30KB"},
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(**SMALL, rope_parameters=ROPE | {"rope_theta": 1000000.0}),
        torch.bfloat16,
        [5, 130, 700],
        {},
    ),
    "llama-untied-head": (
        LlamaForCausalLM,
        LlamaConfig(**SMALL | dict(tie_word_embeddings=False), rope_parameters=ROPE),
        torch.bfloat16,
        [5, 130],
        {},
    ),
    "qwen2-no-window": (
        Qwen2ForCausalLM,
        Qwen2Config(**SMALL, rope_parameters=ROPE),
        torch.bfloat16,
        [5, 130],
        {},
    ),
    # Sliding windows, in every layer and in some. Prompts end on both sides of the window, of a block and of a chunk.
    "mistral-window": (
        MistralForCausalLM,
        MistralConfig(**SMALL, rope_parameters=ROPE, sliding_window=50),
        torch.float16,
        [5, 49, 50, 51, 130, 700],
        {},
    ),
    "qwen2-window": (
        Qwen2ForCausalLM,
        Qwen2Config(
            **SMALL | dict(num_hidden_layers=3),
            rope_parameters=ROPE,
            use_sliding_window=True,
            sliding_window=64,
            max_window_layers=1,
        ),
        torch.bfloat16,
        [5, 64, 130, 700],
        {},
    ),
    "qwen3-window": (
        Qwen3ForCausalLM,
        Qwen3Config(
            **SMALL,
            rope_parameters=ROPE,
            use_sliding_window=True,
            sliding_window=33,
            layer_types=["sliding_attention", "full_attention"],
        ),
        torch.bfloat16,
        [5, 130, 700],
        {},
    ),
    # A layer of experts, a dense one, and another of experts; the weights of the chosen experts as they are or made to
    # sum to one.
    "qwen3-moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SMALL | MOE | dict(norm_topk_prob=True), rope_parameters=ROPE),
        torch.bfloat16,
        [5, 130, 700],
        {},
    ),
    "qwen3-moe-unscaled": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SMALL | MOE | dict(num_experts_per_tok=3, tie_word_embeddings=False), rope_parameters=ROPE),
        torch.float32,
        [5, 130],
        {},
    ),
}


def make_model(name, seed):
    """A random model with the weights as the file will hold them, computed in float32."""
    model_class, config, dtype, _, _ = CASES[name]
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = model_class(config).float().eval()
    with torch.no_grad():
        for tensor_name, parameter in model.named_parameters():
            # transformers initializes these to 1 and 0, values with which leaving them out would go unnoticed.
            if tensor_name.endswith("norm.weight"):
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif tensor_name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
            parameter.copy_(parameter.to(dtype).float())
    return model


def read_back(name, folder):
    """The model of a folder, after its config.json has been changed."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | PATCHES[name]
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}, indent=2) + "\n")
    model_class = CASES[name][0]
    return model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def greedy(model, prompt):
    """The continuation, the margin of every step, and the logits of the first step."""
    tokens, margins, first = list(prompt), [], None
    for _ in range(STEPS):
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        if first is None:
            first = logits.tolist()
        top = torch.topk(logits, 2)
        margins.append(float(top.values[0] - top.values[1]))
        tokens.append(int(top.indices[0]))
    return tokens[len(prompt) :], margins, first


def make_prompt(model, length, generator):
    """A prompt whose continuation is worth comparing."""
    for _ in range(ATTEMPTS):
        prompt = torch.randint(PROMPT_IDS, (length,), generator=generator).tolist()
        output, margins, first = greedy(model, prompt)
        if min(margins) > MARGIN and len(set(output)) >= DISTINCT:
            return {
                "prompt": prompt,
                "output": output,
                "min_margin": round(min(margins), 6),
                "first_logits": [round(value, 5) for value in first],
            }
    sys.exit(f"no prompt of {length} tokens is good enough; change the model's seed or initializer_range")


def main():
    wanted = sys.argv[1:] or list(CASES)
    for seed, name in enumerate(CASES, start=1):
        if name not in wanted:
            continue
        folder = DATA / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _, _, dtype, lengths, save = CASES[name]
        model = make_model(name, seed)
        if name in PATCHES:
            model.to(dtype).save_pretrained(folder, **save)
            model = read_back(name, folder)
        generator = torch.Generator().manual_seed(seed)
        prompts = [make_prompt(model, length, generator) for length in lengths]
        golden = {
            "made_by": "tests/parity/golden.py",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "seed": seed,
            "margin": MARGIN,
            "distinct": DISTINCT,
            "prompts": prompts,
        }
        with open(folder / "golden.json", "w") as file:
            # One prompt per line keeps the file small and its changes readable.
            lines = [json.dumps(prompt, separators=(",", ":")) for prompt in golden.pop("prompts")]
            head = json.dumps(golden, indent=1)[:-2]
            file.write(head + ',\n "prompts": [\n' + ",\n".join(lines) + "\n ]\n}\n")
        if name not in PATCHES:
            model.to(dtype).save_pretrained(folder, **save)
        distinct = [len(set(prompt["output"])) for prompt in prompts]
        margins = [prompt["min_margin"] for prompt in prompts]
        print(f"{name}: distinct tokens {distinct}, smallest margins {margins}")


if __name__ == "__main__":
    main()
