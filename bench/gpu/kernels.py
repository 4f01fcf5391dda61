"""Checks and times the CUDA kernels alone, beside PyTorch on the same GPU.

    python3 bench/gpu/kernels.py          # needs nvcc, PyTorch and one Hopper GPU

Correctness first (float64 references, ragged shapes, poisoned outputs), then a table. Nothing here is part of the
product; the engine loads the same sources through NVRTC.
"""

import ctypes
import math
import os
import subprocess
import sys
import tempfile

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
KERNELS = os.path.join(HERE, "../../worker/src/cuda/kernels")
BLOCK, DIM = 64, 128
driver = ctypes.CDLL("libcuda.so.1")
torch.manual_seed(int(os.environ.get("SEED", "1")))
dev = torch.device("cuda")
torch.zeros(1, device=dev)


def check(code, what):
    if code != 0:
        raise RuntimeError(f"{what}: CUDA error {code}")


class Module:
    def __init__(self, source, *defines):
        out = tempfile.mktemp(suffix=".cubin")
        subprocess.check_call(
            ["nvcc", "-cubin", "-gencode=arch=compute_90a,code=sm_90a", "-O3", "-std=c++17", f"-DHEAD_DIM={DIM}",
             f"-DBLOCK_SIZE={BLOCK}", *defines, "-o", out, os.path.join(KERNELS, source)])
        self.handle = ctypes.c_void_p()
        check(driver.cuModuleLoad(ctypes.byref(self.handle), out.encode()), "load " + source)

    def kernel(self, name, shared=0):
        f = ctypes.c_void_p()
        check(driver.cuModuleGetFunction(ctypes.byref(f), self.handle, name.encode()), name)
        if shared > 48 * 1024:
            check(driver.cuFuncSetAttribute(f, 8, shared), "shared memory of " + name)
        return lambda grid, block, *args: launch(f, grid, block, shared, args, name)


class F(float):
    """A float argument."""


def launch(f, grid, block, shared, args, name):
    grid = (tuple(grid) if isinstance(grid, (tuple, list)) else (grid,)) + (1, 1)
    values = []
    for a in args:
        if isinstance(a, torch.Tensor):
            values.append(ctypes.c_void_p(a.data_ptr()))
        elif a is None:
            values.append(ctypes.c_void_p(0))
        elif isinstance(a, F):
            values.append(ctypes.c_float(a))
        elif isinstance(a, int):
            values.append(ctypes.c_int(a))
        else:
            values.append(a)
    array = (ctypes.c_void_p * len(values))(*[ctypes.cast(ctypes.pointer(v), ctypes.c_void_p) for v in values])
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    check(driver.cuLaunchKernel(f, grid[0], grid[1], grid[2], block, 1, 1, shared, stream, array, None), name)


class TensorMap(ctypes.Structure):
    _fields_ = [("opaque", ctypes.c_uint64 * 16)]


def tensor_map(ptr, rows, cols, stride_elements):
    raw = (ctypes.c_uint8 * 256)()
    at = (ctypes.addressof(raw) + 63) & ~63
    dims = (ctypes.c_uint64 * 2)(cols, rows)
    strides = (ctypes.c_uint64 * 1)(stride_elements * 2)
    box = (ctypes.c_uint32 * 2)(64, 64)
    one = (ctypes.c_uint32 * 2)(1, 1)
    # dtype 9 = bf16, interleave none, swizzle 3 = 128B, L2 promotion 3 = 256B, OOB zeros
    check(driver.cuTensorMapEncodeTiled(ctypes.c_void_p(at), 9, 2, ctypes.c_void_p(ptr), dims, strides, box, one, 0, 3, 3, 0),
          "tensor map")
    return TensorMap.from_buffer_copy((ctypes.c_uint8 * 128).from_address(at))


def ms(fn, n=30):
    for _ in range(3):
        fn()
    torch.cuda.synchronize()
    times = []
    for _ in range(n):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        fn()
        b.record()
        torch.cuda.synchronize()
        times.append(a.elapsed_time(b))
    return sorted(times)[n // 2]


def err(got, want):
    got, want = got.double(), want.double()
    if not torch.isfinite(got).all():
        return float("nan")
    return ((got - want).norm() / want.norm()).item()


failed = []


def expect(name, e, limit=6e-3):
    ok = e < limit
    print(f"{'ok  ' if ok else 'FAIL'} {name}: relative error {e:.2e}", flush=True)
    if not ok:
        failed.append(name)


decode = Module("attention_decode.cu")
prefill = Module("attention_prefill.cu")
prefill90 = Module("attention_prefill_sm90.cu")
element = Module("elementwise.cu")
DECODE_SMEM = 4 * 3 * 2 * 16 * DIM * 2
k_decode = decode.kernel("decode_attention", DECODE_SMEM)
k_plan = decode.kernel("plan_decode")
k_prefill = prefill.kernel("prefill_attention", 4 * 64 * DIM * 2)
k_prefill90 = prefill90.kernel("prefill_attention_sm90", 128 * DIM * 2 * 5 + 128 + 1024)
CTAS = 264
KEEP = []


def pool_for(blocks, kv_heads):
    pool = torch.randn(blocks, 2, kv_heads, BLOCK, DIM, device=dev).bfloat16()
    return pool


def tables_for(lens, blocks):
    most = max((n + BLOCK - 1) // BLOCK for n in lens)
    perm = torch.randperm(blocks)
    table = torch.zeros(len(lens), most, dtype=torch.int32)
    at = 0
    for i, n in enumerate(lens):
        c = (n + BLOCK - 1) // BLOCK
        table[i, :c] = perm[at:at + c].int()
        at += c
    return table.to(dev)


def gather(pool, table, n):
    c = (n + BLOCK - 1) // BLOCK
    kv = pool[table[:c].long()]  # c, 2, heads, 64, d
    kv = kv.permute(1, 2, 0, 3, 4).reshape(2, pool.shape[2], c * BLOCK, DIM)[:, :, :n]
    return kv[0], kv[1]


def run_decode(lens, heads, kv_heads, pool, table, qkv, out, ws):
    ends, partials, counters, ctx = ws
    b = len(lens)
    scale = 1 / math.sqrt(DIM) * math.log2(math.e)
    rows_ = torch.arange(b, dtype=torch.int32, device=dev)
    KEEP.append(rows_)
    k_decode(CTAS, 128, out, qkv, pool, rows_, table, ctx, ends, partials, counters, b, heads, kv_heads, qkv.shape[1],
             table.shape[1], F(scale))


def decode_case(lens, heads=32, kv_heads=8, verify=True):
    b = len(lens)
    blocks = sum((n + BLOCK - 1) // BLOCK for n in lens) + 3
    pool, table = pool_for(blocks, kv_heads), None
    table = tables_for(lens, blocks)
    if verify:  # what no sequence owns must not matter
        for i, n in enumerate(lens):
            if n % BLOCK:
                pool[table[i, n // BLOCK].long(), :, :, n % BLOCK:] = float("nan")
    qkv = torch.randn(b, (heads + 2 * kv_heads) * DIM, device=dev).bfloat16()
    out = torch.full((b, heads * DIM), float("nan"), device=dev).bfloat16()
    ctx = torch.tensor(lens, dtype=torch.int32, device=dev)
    ws = (torch.zeros(b, dtype=torch.int32, device=dev),
          torch.full((CTAS * 2 * 8 * (DIM + 2),), float("nan"), device=dev),
          torch.zeros(b * kv_heads, dtype=torch.int32, device=dev), ctx)
    k_plan(1, 1024, ws[0], ctx, b, kv_heads)
    run_decode(lens, heads, kv_heads, pool, table, qkv, out, ws)
    if verify:
        want = torch.zeros(b, heads, DIM, dtype=torch.float64, device=dev)
        for i, n in enumerate(lens):
            k, v = gather(pool, table[i], n)
            q = qkv[i, :heads * DIM].view(heads, DIM).double()
            k = k.double().repeat_interleave(heads // kv_heads, 0)
            v = v.double().repeat_interleave(heads // kv_heads, 0)
            w = torch.softmax((k @ q.unsqueeze(-1)).squeeze(-1) / math.sqrt(DIM), -1)
            want[i] = (w.unsqueeze(1) @ v).squeeze(1)
        first = out.clone()
        out.fill_(float("nan"))
        run_decode(lens, heads, kv_heads, pool, table, qkv, out, ws)  # again: counters must be back at zero
        expect(f"decode B={b} contexts {min(lens)}..{max(lens)} heads {heads}/{kv_heads}", err(first.view(b, heads, DIM), want))
        expect("  replayed", err(out.view(b, heads, DIM), want))
        if ws[2].abs().sum().item() != 0:
            failed.append("counters")
    return lambda: run_decode(lens, heads, kv_heads, pool, table, qkv, out, ws)


def prefill_case(rows, heads=32, kv_heads=8, verify=True):
    """rows: list of (cached, new)."""
    lens = [c + n for c, n in rows]
    blocks = sum((n + BLOCK - 1) // BLOCK for n in lens) + 3
    pool = pool_for(blocks, kv_heads)
    table = tables_for(lens, blocks)
    total = sum(n for _, n in rows)
    qkv = torch.randn(total, (heads + 2 * kv_heads) * DIM, device=dev).bfloat16()
    out = torch.full((total, heads * DIM), float("nan"), device=dev).bfloat16()
    tiles, flat = [], 0
    for r, (c, n) in enumerate(rows):
        for q0 in range(0, n, 128):
            tiles.append((r, q0, flat + q0, c + q0))
        flat += n
    tiles.sort(key=lambda t: -t[3])
    nt = len(tiles)
    tiles = torch.tensor(tiles, dtype=torch.int32, device=dev)
    row_lens = torch.tensor([n for _, n in rows], dtype=torch.int32, device=dev)
    scale = 1 / math.sqrt(DIM) * math.log2(math.e)
    mq = tensor_map(qkv.data_ptr(), total, qkv.shape[1], qkv.shape[1])
    mkv = tensor_map(pool.data_ptr(), blocks * 2 * kv_heads * BLOCK, DIM, DIM)

    def plain():
        k_prefill((nt, heads), 256, out, qkv, pool, tiles, row_lens, table, heads, kv_heads, qkv.shape[1],
                  table.shape[1], F(scale))

    def fast():
        k_prefill90((heads, nt), 384, out, mq, mkv, tiles, row_lens, table, heads, kv_heads, 0, table.shape[1], F(scale))

    if verify:
        want = torch.zeros(total, heads, DIM, dtype=torch.float64, device=dev)
        flat = 0
        for r, (c, n) in enumerate(rows):
            k, v = gather(pool, table[r], c + n)
            q = qkv[flat:flat + n, :heads * DIM].view(n, heads, DIM).double().transpose(0, 1)
            mask = torch.arange(c + n, device=dev)[None, :] > (c + torch.arange(n, device=dev))[:, None]
            for h in range(heads):
                s = q[h] @ k[h // (heads // kv_heads)].double().T / math.sqrt(DIM)
                s.masked_fill_(mask, float("-inf"))
                want[flat:flat + n, h] = torch.softmax(s, -1) @ v[h // (heads // kv_heads)].double()
            flat += n
        for name, fn in (("mma", plain), ("wgmma", fast)):
            out.fill_(float("nan"))
            fn()
            torch.cuda.synchronize()
            expect(f"prefill {name} rows {rows} heads {heads}/{kv_heads}", err(out.view(total, heads, DIM), want))
    return plain, fast


def elementwise():
    T, hidden, heads, kv_heads, inter, vocab = 77, 4096, 32, 8, 14336, 1000
    x = torch.randn(T, hidden, device=dev).bfloat16()
    res = torch.randn(T, hidden, device=dev).bfloat16()
    w = torch.randn(hidden, device=dev).bfloat16()
    out = torch.full_like(x, float("nan"))
    want_res = (x.float() + res.float()).bfloat16()
    d = want_res.double()
    want = d * torch.rsqrt((d * d).mean(-1, keepdim=True) + 1e-5) * w.double()
    element.kernel("rms_norm")(T, 256, out, res, x, w, hidden, F(1e-5))
    expect("rms_norm", err(out, want))
    expect("rms_norm residual", err(res, want_res), 1e-9)
    gu = torch.randn(T, 2 * inter, device=dev).bfloat16()
    so = torch.full((T, inter), float("nan"), device=dev).bfloat16()
    element.kernel("silu_mul")(264, 256, so, gu, T, inter)
    g, u = gu.double().split(inter, -1)
    expect("silu_mul", err(so, g * torch.sigmoid(g) * u))
    table = torch.randn(vocab, hidden, device=dev).bfloat16()
    ids = torch.randint(0, vocab, (T,), device=dev, dtype=torch.int32)
    element.kernel("embed")(T, 256, out, table, ids, None, hidden, vocab)
    expect("embed", err(out, table[ids.long()]), 1e-9)
    for norm in (False, True):
        blocks = 9
        pool = torch.full((blocks, 2, kv_heads, BLOCK, DIM), float("nan"), device=dev).bfloat16()
        qkv = torch.randn(T, (heads + 2 * kv_heads) * DIM, device=dev).bfloat16()
        src = qkv.clone().view(T, heads + 2 * kv_heads, DIM)
        pos = torch.randint(0, 4000, (T,), device=dev, dtype=torch.int32)
        slots = torch.randperm(blocks * BLOCK, device=dev)[:T].int()
        inv = 500000.0 ** (-torch.arange(0, DIM, 2, device=dev, dtype=torch.float64) / DIM)
        ang = torch.arange(4096, device=dev, dtype=torch.float64)[:, None] * inv
        cs = torch.cat([ang.cos(), ang.sin()], -1).float().contiguous()
        nq = torch.randn(DIM, device=dev).bfloat16() if norm else None
        nk = torch.randn(DIM, device=dev).bfloat16() if norm else None
        element.kernel("rope_append")((T * (heads + 2 * kv_heads) + 7) // 8, 256, qkv, pool, pos, slots, cs, nq, nk, T,
                                      heads, kv_heads, F(1e-6))
        want = src.double().clone()
        if norm:
            for sl, wt in ((slice(0, heads), nq), (slice(heads, heads + kv_heads), nk)):
                part = want[:, sl]
                want[:, sl] = part * torch.rsqrt((part * part).mean(-1, keepdim=True) + 1e-6) * wt.double()
        a = ang[pos.long()]
        c, s = a.cos()[:, None], a.sin()[:, None]
        qk = want[:, :heads + kv_heads]
        x1, x2 = qk[..., :DIM // 2].clone(), qk[..., DIM // 2:].clone()
        qk[..., :DIM // 2] = x1 * c - x2 * s
        qk[..., DIM // 2:] = x2 * c + x1 * s
        expect(f"rope q norm={norm}", err(qkv.view(T, -1, DIM)[:, :heads], want[:, :heads]))
        b, o = (slots // BLOCK).long(), (slots % BLOCK).long()
        expect(f"rope k norm={norm}", err(pool[b, 0, :, o], want[:, heads:heads + kv_heads]))
        expect(f"append v norm={norm}", err(pool[b, 1, :, o], want[:, heads + kv_heads:]), 1e-9)


elementwise()
for heads, kv_heads in ((32, 8), (28, 4), (16, 16), (64, 8)):
    decode_case([1, 2, 63, 64, 65, 127, 128, 129, 1000, 3000, 16000], heads, kv_heads)
decode_case([3000])
decode_case([17] * 64)
decode_case([int(x) for x in torch.randint(1, 5000, (200,))])
for heads, kv_heads in ((32, 8), (8, 2)):
    prefill_case([(0, 1), (0, 63), (0, 64), (0, 65), (0, 128), (0, 300)], heads, kv_heads)
    prefill_case([(64, 100), (1000, 129), (37, 500), (128, 128), (63, 1)], heads, kv_heads)
prefill_case([(0, 3000)], 8, 2)
prefill_case([(4096, 777)], 8, 2)
print("failed:", failed, flush=True)

print("\nGPU:", torch.cuda.get_device_name(), "torch", torch.__version__)
a = torch.randn(8192, 8192, device=dev).bfloat16()
t = ms(lambda: a @ a)
print(f"calibration: GEMM 8192^3 {2 * 8192**3 / t / 1e9:.0f} TFLOP/s", end="; ")
x, w = torch.randn(2048, 4096, device=dev).bfloat16(), torch.randn(14336, 4096, device=dev).bfloat16()
t = ms(lambda: torch.nn.functional.linear(x, w))
print(f"GEMM 2048x14336x4096 {2 * 2048 * 14336 * 4096 / t / 1e9:.0f} TFLOP/s", end="; ")
big = torch.empty(1 << 30, dtype=torch.uint8, device=dev)
big2 = torch.empty_like(big)
t = ms(lambda: big2.copy_(big))
print(f"copy {2 * (1 << 30) / t / 1e9:.2f} TB/s")
flush = torch.empty(256 << 20, dtype=torch.uint8, device=dev)


def cold(fn, n=20):
    fn()
    times = []
    for _ in range(n):
        flush.zero_()
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(200_000)
        a.record()
        fn()
        b.record()
        torch.cuda.synchronize()
        times.append(a.elapsed_time(b))
    return sorted(times)[n // 2]


print("decode attention, one layer, 32/8 heads")
for b, n in ((1, 3000), (10, 3000), (64, 3000), (64, 500), (1, 100), (64, 100)):
    fn = decode_case([n] * b, verify=False)
    t = cold(fn)
    bytes_ = b * n * 8 * 128 * 2 * 2
    print(f"  B={b:3} context {n}: {t * 1e3:7.1f} us  {bytes_ / t / 1e9:.2f} TB/s")
print("prefill attention, one layer, 32/8 heads")
for n in (3000, 16384):
    plain, fast = prefill_case([(0, n)], verify=False)
    q = torch.randn(1, 32, n, DIM, device=dev).bfloat16()
    k = torch.randn(1, 32, n, DIM, device=dev).bfloat16()
    flops = 4 * 32 * DIM * n * n / 2
    t0, t1 = ms(plain), ms(fast)
    t2 = ms(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True))
    print(f"  n={n}: mma {t0:.3f} ms {flops / t0 / 1e9:.0f} TFLOP/s; wgmma {t1:.3f} ms {flops / t1 / 1e9:.0f}; "
          f"torch SDPA {t2:.3f} ms {flops / t2 / 1e9:.0f}")
sys.exit(1 if failed else 0)
