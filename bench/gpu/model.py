"""Writes a folder for `--load-format dummy` with the Llama-3.1-8B shape and a tokenizer that has a word for every id,
so that every drawn token is text and is sent as an event of its own.

    python3 bench/gpu/model.py FOLDER [LAYERS [WIDTH]]          # by default 32 4096; smaller for a CPU
"""

import json
import pathlib
import sys

VOCAB = 128256
LAYERS = int(sys.argv[2]) if len(sys.argv) > 2 else 32
WIDTH = int(sys.argv[3]) if len(sys.argv) > 3 else 4096
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": WIDTH,
    "intermediate_size": WIDTH * 7 // 2, "num_hidden_layers": LAYERS, "num_attention_heads": WIDTH // 128,
    "num_key_value_heads": WIDTH // 512,
    "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "max_position_embeddings": 131072, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "eos_token_id": 128001, "bos_token_id": 128000, "torch_dtype": "bfloat16",
}
tokenizer = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(VOCAB)}, "unk_token": "w0"},
}
(folder / "config.json").write_text(json.dumps(config))
(folder / "tokenizer.json").write_text(json.dumps(tokenizer))
(folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 131072}))
