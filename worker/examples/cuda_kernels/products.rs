//! `matmul_decode.cu` and the kernels behind it that add up its parts.

use disagg_worker::cuda::compile;
use disagg_worker::cuda::device::{Arg, Buffer, Kernel, TensorMap};
use disagg_worker::cuda::forward::{PRODUCT_WIDTHS, ring_bytes};
use disagg_worker::cuda::split::Split;
use rayon::prelude::*;

use crate::support::{Gpu, address, int};

/// x[m, k] · w[n, k]ᵀ.
fn product(x: &[f32], w: &[f32], n: usize, k: usize) -> Vec<f64> {
    let rows: Vec<&[f32]> = x.chunks_exact(k).collect();
    rows.par_iter()
        .flat_map_iter(|row| {
            (0..n).map(|column| {
                let weight = &w[column * k..][..k];
                row.iter().zip(weight).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
            })
        })
        .collect()
}

/// A product that was computed on the device.
struct Parts {
    split: Split,
    planes: Buffer<f32>,
    tokens: usize,
    n: usize,
}

impl Parts {
    fn args(&self) -> [Arg; 3] {
        [int(self.split.k_blocks as usize), int(self.split.units as usize), int(self.split.ctas as usize)]
    }

    /// The sum that the kernels behind it form, on the host.
    fn sum(&self, gpu: &Gpu) -> Vec<f32> {
        let parts = gpu.download(&self.planes);
        let owner = |unit: u32| ((unit + 1) * self.split.ctas - 1) / self.split.units;
        (0..self.tokens * self.n)
            .map(|at| {
                let first = (at % self.n) as u32 / 128 * self.split.k_blocks;
                let planes = owner(first + self.split.k_blocks - 1) - owner(first) + 1;
                (0..planes as usize).map(|plane| parts[plane * self.tokens * self.n + at]).sum::<f32>()
            })
            .collect()
    }
}

fn multiply(gpu: &Gpu, x: &Buffer<u16>, w: &Buffer<u16>, m: usize, n: usize, k: usize) -> Parts {
    let module = gpu.module(compile::MATMUL_DECODE);
    let (form, stages, name) = PRODUCT_WIDTHS.into_iter().find(|width| width.0 as usize >= m).unwrap();
    let kernel = Kernel::new(&module, name, ring_bytes(form, stages)).unwrap();
    let split = Split::new(n as u32, k as u32, gpu.device.multiprocessors);
    let parts = gpu.poisoned::<f32>(split.planes() as usize * m * n);
    let (n64, k64) = (n as u64, k as u64);
    let map_w = TensorMap::new(gpu.target.format, w.address(), n64, k64, k64, 128).unwrap();
    let map_x = TensorMap::new(gpu.target.format, x.address(), (x.len() / k) as u64, k64, k64, form).unwrap();
    let args = [
        address(&parts),
        Arg::Map(map_w),
        Arg::Map(map_x),
        int(m),
        int(n),
        int(split.k_blocks as usize),
        int(split.units as usize),
    ];
    gpu.run(&kernel, (split.ctas, 1), 288, &args);
    Parts { split, planes: parts, tokens: m, n }
}

pub fn check(gpu: &mut Gpu) {
    if !gpu.target.hopper() {
        println!("not run: products of decode steps are written for compute capability 9.0");
        return;
    }
    let shapes: &[(usize, usize, usize)] = if gpu.small {
        &[(1, 256, 192), (9, 384, 128), (20, 136, 72), (64, 128, 256)]
    } else {
        &[
            (1, 6144, 4096),
            (1, 4096, 14336),
            (3, 28672, 4096),
            (8, 4096, 4096),
            (10, 1152, 896),
            (16, 6144, 4096),
            (17, 896, 4864),
            (32, 512, 1024),
            (33, 136, 72),
            (64, 6144, 4096),
            (64, 8, 8),
        ]
    };
    for &(m, n, k) in shapes {
        // Rows behind the step's tokens hold NaN: they must not reach those in front.
        let (x, mut padded) = (gpu.random.stored(m * k), Vec::new());
        padded.extend_from_slice(&x);
        padded.resize((m + 5) * k, f32::NAN);
        let x_device = gpu.upload_stored(&padded);
        let (w, w_host) = gpu.normal(n * k);
        let parts = multiply(gpu, &x_device, &w, m, n, k);
        let want = product(&x, &w_host, n, k);
        let got = parts.sum(gpu);
        gpu.expect(&format!("product {m} × {n} × {k}"), &got, &want, 1e-5);
    }
    norm(gpu);
    silu(gpu);
    rope(gpu);
}

fn norm(gpu: &mut Gpu) {
    let module = gpu.module(compile::ELEMENTWISE_DECODE);
    let kernel = Kernel::new(&module, "rms_norm_parts", 0).unwrap();
    let (m, n, k) = if gpu.small { (3, 512, 192) } else { (13, 4096, 1000) };
    let ((x, x_host), (w, w_host)) = (gpu.normal(m * k), gpu.normal(n * k));
    let (residual, residual_host) = gpu.normal(m * n);
    let (weight, weight_host) = gpu.normal(n);
    let out = gpu.poisoned::<u16>(m * n);
    let parts = multiply(gpu, &x, &w, m, n, k);
    let [k_blocks, units, ctas] = parts.args();
    let args = [
        address(&out),
        address(&residual),
        address(&parts.planes),
        address(&weight),
        int(n),
        Arg::Float(1e-5),
        k_blocks,
        units,
        ctas,
    ];
    gpu.run(&kernel, (m as u32, 1), 512, &args);
    let sum: Vec<f64> = product(&x_host, &w_host, n, k)
        .iter()
        .zip(&residual_host)
        .map(|(product, &residual)| gpu.rounded(product + f64::from(residual)))
        .collect();
    let got = gpu.download_stored(&residual);
    gpu.expect("norm of a product: the residual stream", &got, &sum, gpu.bound());
    let want: Vec<f64> = sum
        .chunks_exact(n)
        .flat_map(|row| {
            let scale = (row.iter().map(|x| x * x).sum::<f64>() / n as f64 + 1e-5).sqrt().recip();
            row.iter().zip(&weight_host).map(move |(x, &w)| x * scale * f64::from(w)).collect::<Vec<_>>()
        })
        .collect();
    let got = gpu.download_stored(&out);
    gpu.expect("norm of a product", &got, &want, gpu.bound());
}

fn silu(gpu: &mut Gpu) {
    let module = gpu.module(compile::ELEMENTWISE_DECODE);
    let kernel = Kernel::new(&module, "silu_mul_parts", 0).unwrap();
    let (m, n, k) = if gpu.small { (2, 136, 64) } else { (9, 4864, 904) };
    let ((x, x_host), (w, w_host)) = (gpu.normal(m * k), gpu.normal(2 * n * k));
    let parts = multiply(gpu, &x, &w, m, 2 * n, k);
    let out = gpu.poisoned::<u16>(m * n);
    let [k_blocks, units, ctas] = parts.args();
    let args = [address(&out), address(&parts.planes), int(m), int(n), k_blocks, units, ctas];
    gpu.run(&kernel, ((m * n / 8).div_ceil(128) as u32, 1), 128, &args);
    let want: Vec<f64> = product(&x_host, &w_host, 2 * n, k)
        .chunks_exact(2 * n)
        .flat_map(|row| (0..n).map(|i| row[i] / (1.0 + (-row[i]).exp()) * row[n + i]).collect::<Vec<_>>())
        .collect();
    let got = gpu.download_stored(&out);
    gpu.expect("SiLU·mul of a product", &got, &want, gpu.bound());
}

fn rope(gpu: &mut Gpu) {
    let module = gpu.module(compile::ELEMENTWISE_DECODE);
    let kernel = Kernel::new(&module, "rope_append_parts", 0).unwrap();
    for with in [false, true] {
        let (heads, kv_heads, tokens) = (8, 2, if gpu.small { 3 } else { 11 });
        let width = (heads + 2 * kv_heads) * gpu.head_dim;
        let k = 128;
        let ((x, x_host), (w, w_host)) = (gpu.normal(tokens * k), gpu.normal(width * k));
        let (bias, bias_host) = gpu.normal(width);
        let parts = multiply(gpu, &x, &w, tokens, width, k);
        let mut qkv = product(&x_host, &w_host, width, k);
        for row in qkv.chunks_exact_mut(width) {
            for (value, &bias) in row.iter_mut().zip(&bias_host) {
                *value = gpu.rounded(*value + if with { f64::from(bias) } else { 0.0 });
            }
        }
        let out = gpu.poisoned::<u16>(tokens * width);
        let [k_blocks, units, ctas] = parts.args();
        let with_bias = if with { address(&bias) } else { Arg::Address(0) };
        let blocks = 6;
        crate::elementwise::check_rope(
            gpu,
            "of a product",
            &qkv,
            (heads, kv_heads, tokens),
            with,
            blocks,
            |gpu, rope| {
                let mut args = vec![address(&out), rope.pool, address(&parts.planes), with_bias];
                args.extend(rope.rest);
                args.extend([k_blocks, units, ctas]);
                let items = tokens * (heads + 2 * kv_heads);
                gpu.run(&kernel, (items.div_ceil(4) as u32, 1), 128, &args);
                gpu.download_stored(&out)
            },
        );
    }
}
