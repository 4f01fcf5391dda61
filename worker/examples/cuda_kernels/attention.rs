//! `attention_decode.cu`, `attention_prefill.cu`, `attention_prefill_sm90.cu`.

use disagg_worker::cuda::backend::BLOCK_SIZE;
use disagg_worker::cuda::compile;
use disagg_worker::cuda::device::{Arg, Buffer, Kernel, TensorMap};
use disagg_worker::cuda::forward::decode_attention_bytes;
use rayon::prelude::*;

use crate::support::{Gpu, address, int};

const PAGE: usize = BLOCK_SIZE as usize;

/// A pool and block tables over it.
struct Paged {
    values: Vec<f32>,
    device: Buffer<u16>,
    blocks: usize,
    kv_heads: usize,
    head_dim: usize,
    tables: Vec<u32>,
    stride: usize,
}

impl Paged {
    /// For sequences of these lengths, in random blocks. What no sequence owns is NaN; behind a sequence's end in its last
    /// block, keys are NaN, and values too unless they `must_be_finite`.
    fn new(gpu: &mut Gpu, lens: &[usize], kv_heads: usize, must_be_finite: bool) -> Self {
        let stride = lens.iter().map(|len| len.div_ceil(PAGE)).max().unwrap();
        let blocks = lens.iter().map(|len| len.div_ceil(PAGE)).sum::<usize>() + 3;
        let d = gpu.head_dim;
        let mut values = vec![f32::NAN; blocks * 2 * kv_heads * PAGE * d];
        let order = gpu.random.order(blocks);
        let mut tables = vec![0; lens.len() * stride];
        let mut next = order.into_iter();
        for (row, &len) in lens.iter().enumerate() {
            for page in 0..len.div_ceil(PAGE) {
                let block = next.next().unwrap();
                tables[row * stride + page] = block;
                for half in 0..2 {
                    for head in 0..kv_heads {
                        let at = ((block as usize * 2 + half) * kv_heads + head) * PAGE * d;
                        let filled = (len - page * PAGE).min(PAGE) * d;
                        let random = gpu.random.stored(filled);
                        values[at..at + filled].copy_from_slice(&random);
                        if half == 1 && must_be_finite {
                            values[at + filled..at + PAGE * d].fill(0.0);
                        }
                    }
                }
            }
        }
        let device = gpu.upload_stored(&values);
        Self { values, device, blocks, kv_heads, head_dim: d, tables, stride }
    }

    fn row(&self, sequence: usize, half: usize, head: usize, token: usize) -> &[f32] {
        let block = self.tables[sequence * self.stride + token / PAGE] as usize;
        let at = ((block * 2 + half) * self.kv_heads + head) * PAGE + token % PAGE;
        &self.values[at * self.head_dim..][..self.head_dim]
    }

    /// Attention of one query over the last `window` (0: all) of the first `context` tokens.
    fn attend(&self, sequence: usize, head: usize, query: &[f32], context: usize, window: usize) -> Vec<f64> {
        let first = if window == 0 { 0 } else { context.saturating_sub(window) };
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let scale = (self.head_dim as f64).sqrt().recip();
        let scores: Vec<f64> =
            (first..context).map(|token| dot(query, self.row(sequence, 0, head, token)) * scale).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (mut out, mut sum) = (vec![0.0; self.head_dim], 0.0);
        for (token, score) in (first..).zip(&scores) {
            let weight = (score - most).exp();
            sum += weight;
            out.iter_mut()
                .zip(self.row(sequence, 1, head, token))
                .for_each(|(o, &v)| *o += weight * f64::from(v));
        }
        out.iter().map(|o| o / sum).collect()
    }
}

fn scale_log2(gpu: &Gpu) -> Arg {
    Arg::Float(std::f32::consts::LOG2_E / (gpu.head_dim as f32).sqrt())
}

/// Sliding windows: none, within a block, a block, and several blocks and a part.
const WINDOWS: [usize; 5] = [0, 1, 23, 64, 300];

pub fn check_decode(gpu: &mut Gpu) {
    let cases: &[(&[usize], usize, usize)] = if gpu.small {
        &[(&[1, 64, 65, 130], 4, 1), (&[200], 2, 2)]
    } else {
        &[
            (&[1, 2, 63, 64, 65, 127, 128, 129, 1000, 3000, 16_000], 32, 8),
            (&[1, 2, 63, 64, 65, 127, 128, 129, 1000, 3000, 16_000], 28, 4),
            (&[3000], 32, 8),
            (&[16_384], 8, 1),
            (&[1], 8, 8),
            (&[17; 64], 16, 16),
            (&[300, 0, 77, 0, 1], 8, 2),
        ]
    };
    for &(lens, heads, kv_heads) in cases {
        for ctas in [gpu.device.multiprocessors, gpu.device.multiprocessors * 2] {
            for window in WINDOWS {
                decode(gpu, lens, heads, kv_heads, ctas, window);
            }
        }
    }
}

fn decode(gpu: &mut Gpu, lens: &[usize], heads: usize, kv_heads: usize, ctas: u32, window: usize) {
    let (d, rows) = (gpu.head_dim, lens.len());
    let module = gpu.module(compile::ATTENTION_DECODE);
    let kernel = Kernel::new(&module, "decode_attention", decode_attention_bytes(d as u32)).unwrap();
    let plan = Kernel::new(&module, "plan_decode", 0).unwrap();
    let paged = Paged::new(gpu, lens, kv_heads, false);
    let width = (heads + 2 * kv_heads) * d;
    let (qkv, qkv_host) = gpu.normal(rows * width);
    let q_rows = gpu.random.order(rows);
    let contexts = gpu.upload(&lens.iter().map(|&len| len as u32).collect::<Vec<_>>());
    let (q_rows_device, tables) = (gpu.upload(&q_rows), gpu.upload(&paged.tables));
    let (ends, counters) = (gpu.poisoned::<u32>(rows), gpu.zeroed::<u32>(rows * kv_heads));
    let partials = gpu.poisoned::<f32>(ctas as usize * 2 * 8 * (d + 4));
    let out = gpu.poisoned::<u16>(rows * heads * d);
    gpu.run(
        &plan,
        (1, 1),
        1024,
        &[address(&ends), address(&contexts), int(rows), int(kv_heads), int(window)],
    );
    let args = [
        address(&out),
        address(&qkv),
        address(&paged.device),
        address(&q_rows_device),
        address(&tables),
        address(&contexts),
        address(&ends),
        address(&partials),
        address(&counters),
        int(rows),
        int(heads),
        int(kv_heads),
        int(width),
        int(paged.stride),
        scale_log2(gpu),
        int(window),
    ];
    let pairs: Vec<(usize, usize)> = (0..rows)
        .flat_map(|row| (0..heads).map(move |head| (row, head)))
        .filter(|pair| lens[pair.0] > 0)
        .collect();
    let want: Vec<f64> = pairs
        .par_iter()
        .flat_map_iter(|&(row, head)| {
            let query = &qkv_host[q_rows[row] as usize * width + head * d..][..d];
            paged.attend(row, head / (heads / kv_heads), query, lens[row], window)
        })
        .collect();
    // Twice: a replayed graph finds the counters as the launch before left them.
    for time in ["", ", again"] {
        gpu.poison(&out);
        gpu.run(&kernel, (ctas, 1), 128, &args);
        let rows_out = gpu.download_stored(&out);
        let got: Vec<f32> = pairs
            .iter()
            .flat_map(|&(row, head)| rows_out[(q_rows[row] as usize * heads + head) * d..][..d].to_vec())
            .collect();
        let most = lens.iter().max().unwrap();
        let what = format!(
            "decode attention, {rows} contexts up to {most}, heads {heads}/{kv_heads}, {ctas} CTAs, window {window}{time}"
        );
        gpu.expect(&what, &got, &want, gpu.bound());
    }
    let zero = gpu.download(&counters).iter().all(|&count| count == 0);
    gpu.expect_true("  its counters are back at zero", zero);
}

pub fn check_prefill(gpu: &mut Gpu) {
    // (cached, new) of each row.
    let cases: &[(&[(usize, usize)], usize, usize)] = if gpu.small {
        &[(&[(0, 2), (0, 65), (64, 70), (37, 130)], 2, 1)]
    } else {
        &[
            (&[(0, 1), (0, 63), (0, 64), (0, 65), (0, 128), (0, 300)], 32, 8),
            (&[(64, 100), (1000, 129), (37, 500), (128, 128), (63, 1)], 8, 2),
            (&[(0, 3000)], 8, 2),
            (&[(16_000, 300)], 2, 1),
        ]
    };
    for &(rows, heads, kv_heads) in cases {
        for window in WINDOWS {
            prefill(gpu, rows, heads, kv_heads, window);
        }
    }
}

fn prefill(gpu: &mut Gpu, rows: &[(usize, usize)], heads: usize, kv_heads: usize, window: usize) {
    let d = gpu.head_dim;
    let lens: Vec<usize> = rows.iter().map(|(cached, new)| cached + new).collect();
    let paged = Paged::new(gpu, &lens, kv_heads, true);
    let total: usize = rows.iter().map(|row| row.1).sum();
    let width = (heads + 2 * kv_heads) * d;
    let (qkv, qkv_host) = gpu.normal(total * width);
    let (mut tiles, mut queries, mut flat) = (Vec::new(), Vec::new(), 0);
    for (row, &(cached, new)) in rows.iter().enumerate() {
        tiles.extend((0..new).step_by(128).map(|q| [row, q, flat + q, cached + q].map(|x| x as u32)));
        queries.extend((0..new).map(|q| (row, flat + q, cached + q + 1)));
        flat += new;
    }
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile[3]));
    let want: Vec<f64> = queries
        .par_iter()
        .flat_map_iter(|&(row, token, context)| {
            let (paged, qkv_host) = (&paged, &qkv_host);
            (0..heads).flat_map(move |head| {
                let query = &qkv_host[token * width + head * d..][..d];
                paged.attend(row, head / (heads / kv_heads), query, context, window)
            })
        })
        .collect();
    let count = tiles.len() as u32;
    let tiles = gpu.upload(&tiles.concat());
    let row_lens = gpu.upload(&rows.iter().map(|row| row.1 as u32).collect::<Vec<_>>());
    let tables = gpu.upload(&paged.tables);
    let out = gpu.poisoned::<u16>(total * heads * d);
    let what = |name: &str| {
        format!(
            "prefill attention ({name}), (cached, new) {rows:?}, heads {heads}/{kv_heads}, window {window}"
        )
    };

    let module = gpu.module(compile::ATTENTION_PREFILL);
    let kernel = Kernel::new(&module, "prefill_attention", (4 * 64 * d * 2) as u32).unwrap();
    let args = [
        address(&out),
        address(&qkv),
        address(&paged.device),
        address(&tiles),
        address(&row_lens),
        address(&tables),
        int(heads),
        int(kv_heads),
        int(width),
        int(paged.stride),
        scale_log2(gpu),
        int(window),
    ];
    gpu.run(&kernel, (count, heads as u32), 256, &args);
    let got = gpu.download_stored(&out);
    gpu.expect(&what("mma"), &got, &want, gpu.bound());

    if !compile::ATTENTION_PREFILL_SM90.is_for(&gpu.target) {
        return;
    }
    gpu.poison(&out);
    let module = gpu.module(compile::ATTENTION_PREFILL_SM90);
    let kernel =
        Kernel::new(&module, "prefill_attention_sm90", (5 * 128 * d * 2 + 128 + 1024) as u32).unwrap();
    let (d64, width64) = (d as u64, width as u64);
    let map_q = TensorMap::new(gpu.target.format, qkv.address(), total as u64, width64, width64, 64).unwrap();
    let rows_of_pool = (paged.blocks * 2 * kv_heads * PAGE) as u64;
    let map_kv =
        TensorMap::new(gpu.target.format, paged.device.address(), rows_of_pool, d64, d64, 64).unwrap();
    let args = [
        address(&out),
        Arg::Map(map_q),
        Arg::Map(map_kv),
        address(&tiles),
        address(&row_lens),
        address(&tables),
        int(heads),
        int(kv_heads),
        int(0),
        int(paged.stride),
        scale_log2(gpu),
        int(window),
    ];
    gpu.run(&kernel, (heads as u32, count), 384, &args);
    let got = gpu.download_stored(&out);
    gpu.expect(&what("wgmma"), &got, &want, gpu.bound());
}
