"""Calibrates the machine, and times the attention kernels beside PyTorch on the same GPU.

    python3 bench/gpu/beside_torch.py          # needs nvcc, PyTorch and one Hopper GPU

Compare every figure of docs/perf.md with the first four lines. Nothing here is part of the product; the engine compiles
the same sources with NVRTC, and `cuda_kernels` checks their results.
"""

import ctypes
import math
import os
import subprocess
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
        else:  # a structure by value
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


decode = Module("attention_decode.cu")
prefill = Module("attention_prefill.cu")
prefill90 = Module("attention_prefill_sm90.cu")
DECODE_SMEM = 4 * 3 * 2 * 16 * DIM * 2
# Every query sees all tokens before it.
NO_WINDOW = 0
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


def run_decode(lens, heads, kv_heads, pool, table, qkv, out, ws):
    ends, partials, counters, ctx = ws
    b = len(lens)
    scale = 1 / math.sqrt(DIM) * math.log2(math.e)
    rows_ = torch.arange(b, dtype=torch.int32, device=dev)
    KEEP.append(rows_)
    k_decode(CTAS // 2 if b <= 16 else CTAS, 128, out, qkv, pool, rows_, table, ctx, ends, partials, counters,
             b, heads, kv_heads, qkv.shape[1], table.shape[1], F(scale), NO_WINDOW)


def decode_case(lens, heads=32, kv_heads=8):
    b = len(lens)
    blocks = sum((n + BLOCK - 1) // BLOCK for n in lens) + 3
    pool, table = pool_for(blocks, kv_heads), None
    table = tables_for(lens, blocks)
    qkv = torch.randn(b, (heads + 2 * kv_heads) * DIM, device=dev).bfloat16()
    out = torch.full((b, heads * DIM), float("nan"), device=dev).bfloat16()
    ctx = torch.tensor(lens, dtype=torch.int32, device=dev)
    ws = (torch.zeros(b, dtype=torch.int32, device=dev),
          torch.full((CTAS * 2 * 8 * (DIM + 4),), float("nan"), device=dev),
          torch.zeros(b * kv_heads, dtype=torch.int32, device=dev), ctx)
    k_plan(1, 1024, ws[0], ctx, b, kv_heads, NO_WINDOW)
    return lambda: run_decode(lens, heads, kv_heads, pool, table, qkv, out, ws)


def prefill_case(rows, heads=32, kv_heads=8):
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
                  table.shape[1], F(scale), NO_WINDOW)

    def fast():
        k_prefill90((heads, nt), 384, out, mq, mkv, tiles, row_lens, table, heads, kv_heads, 0, table.shape[1],
                    F(scale), NO_WINDOW)

    return plain, fast


print("GPU:", torch.cuda.get_device_name(), "torch", torch.__version__)
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
weights = [w] + [torch.randn(14336, 4096, device=dev).bfloat16() for _ in range(3)]
for rows in (1, 16, 64):
    x = torch.randn(rows, 4096, device=dev).bfloat16()

    def product():
        for each in weights:  # 470 MB in total, so none is in the L2 cache when its turn comes
            torch.nn.functional.linear(x, each)

    t = ms(product) / len(weights)
    print(f"calibration: GEMM M={rows} 4096->14336 {14336 * 4096 * 2 / t / 1e9:.2f} TB/s")
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
    fn = decode_case([n] * b)
    t = cold(fn)
    bytes_ = b * n * 8 * 128 * 2 * 2
    print(f"  B={b:3} context {n}: {t * 1e3:7.1f} us  {bytes_ / t / 1e9:.2f} TB/s")
print("prefill attention, one layer, 32/8 heads")
for n in (3000, 16384):
    plain, fast = prefill_case([(0, n)])
    q = torch.randn(1, 32, n, DIM, device=dev).bfloat16()
    k = torch.randn(1, 32, n, DIM, device=dev).bfloat16()
    flops = 4 * 32 * DIM * n * n / 2
    t0, t1 = ms(plain), ms(fast)
    t2 = ms(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True))
    print(f"  n={n}: mma {t0:.3f} ms {flops / t0 / 1e9:.0f} TFLOP/s; wgmma {t1:.3f} ms {flops / t1 / 1e9:.0f}; "
          f"torch SDPA {t2:.3f} ms {flops / t2 / 1e9:.0f}")
