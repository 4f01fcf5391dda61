# SPDX-License-Identifier: Apache-2.0
"""A small Llama in plain torch, with the parameter names and the arithmetic of transformers' LlamaForCausalLM.

Our own forward pass because training needs three things: positions with gaps, tokens that count many times, and logits at
chosen tokens only. The optimizer and an auxiliary task are here too.
eval.py loads the result with transformers, which shows that the two agree.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def rotate(x, cos, sin):
    """Rotary embedding, halves convention. x: [batch, heads, tokens, head_dim]; cos, sin: [batch, 1, tokens, head_dim / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.heads, self.kv_heads, self.dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        hidden = c["hidden_size"]
        self.q_proj = linear(hidden, self.heads * self.dim)
        self.k_proj = linear(hidden, self.kv_heads * self.dim)
        self.v_proj = linear(hidden, self.kv_heads * self.dim)
        self.o_proj = linear(self.heads * self.dim, hidden)

    def forward(self, x, cos, sin, mask):
        b, t, _ = x.shape
        q = rotate(self.q_proj(x).view(b, t, self.heads, self.dim).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(b, t, self.kv_heads, self.dim).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.dim).transpose(1, 2)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        # Padding is on the right, so the causal mask alone hides it from every real token.
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.gate_proj = linear(c["hidden_size"], c["intermediate_size"])
        self.up_proj = linear(c["hidden_size"], c["intermediate_size"])
        self.down_proj = linear(c["intermediate_size"], c["hidden_size"])

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), Mlp(c)
        self.input_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])
        inverse = c["rope_theta"] ** (-torch.arange(0, c["head_dim"], 2).float() / c["head_dim"])
        angles = torch.outer(torch.arange(c["max_position_embeddings"]).float(), inverse)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = 0.7 / math.sqrt(c["hidden_size"])
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    std /= math.sqrt(2 * c["num_hidden_layers"])
                if name.startswith("embed_tokens"):
                    std = 0.05
                nn.init.normal_(p, std=std)

    def forward(self, embedded, positions, copies):
        """embedded: [batch, tokens, hidden]; positions: [batch, tokens]. Returns the last hidden states, [batch, tokens, hidden].

        `copies`, [batch, tokens], makes attention treat a token as that many equal ones.
        """
        mask = None
        if (copies > 1).any():
            t = positions.shape[1]
            hidden = torch.full((t, t), float("-inf")).triu(1)
            # Attention needs the mask in the type of the queries.
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float
            mask = (hidden + copies.log()[:, None, None, :]).to(dtype)
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x = embedded
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.embed_tokens.weight)


class Guess(nn.Module):
    """The topic of a question from the mean of its token embeddings, an auxiliary task of training.

    It gives embeddings a meaning early; without it the layers take several times as long to find out which words matter.
    Thrown away after training.
    """

    def __init__(self, hidden: int, topics: int):
        super().__init__()
        self.head = nn.Linear(hidden, topics)

    def forward(self, embedded, asked):
        """embedded: [batch, tokens, hidden]; asked: [batch, tokens], 1 for the tokens of the question. Returns [batch, topics]."""
        mean = (embedded * asked[..., None]).sum(1) / asked.sum(1, keepdim=True).clamp(min=1)
        return self.head(F.rms_norm(mean, mean.shape[-1:]))


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates for the matrices of the layers (K. Jordan, 2024): Newton-Schulz, five steps."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(mean, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonal(g):
    """A matrix with the singular vectors of `g` and singular values near one; bfloat16 is exact enough for that."""
    x = g.T if g.shape[0] > g.shape[1] else g
    x = (x / (x.norm() + 1e-7)).bfloat16()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x.float()
    return x.T if g.shape[0] > g.shape[1] else x
