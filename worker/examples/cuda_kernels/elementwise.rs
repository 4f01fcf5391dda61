//! `elementwise.cu` and `copy_blocks.cu`.

use disagg_worker::cuda::backend::BLOCK_SIZE;
use disagg_worker::cuda::compile;
use disagg_worker::cuda::device::{Arg, Kernel};

use crate::support::{Gpu, address, doubles, int};

pub fn check(gpu: &mut Gpu) {
    let module = gpu.module(compile::ELEMENTWISE);
    let kernel = |name| Kernel::new(&module, name, 0).unwrap();
    let (tokens, hidden, vocab) = if gpu.small { (5, 72, 40) } else { (77, 4096, 1000) };

    let (table, table_host) = gpu.normal(vocab * hidden);
    let sampled = gpu.upload(&[7_u32, 9]);
    let mut ids: Vec<u32> = (0..tokens).map(|_| gpu.random.below(vocab) as u32).collect();
    ids[1] = 1 << 31 | 1; // the second token that the step before drew
    ids[2] = vocab as u32; // none: reads row 0
    let want: Vec<f64> = ids
        .iter()
        .map(|&id| {
            if id >> 31 == 1 {
                9
            } else if id as usize >= vocab {
                0
            } else {
                id as usize
            }
        })
        .flat_map(|id| doubles(&table_host[id * hidden..][..hidden]))
        .collect();
    let (ids, out) = (gpu.upload(&ids), gpu.poisoned::<u16>(tokens * hidden));
    let args = [
        address(&out),
        address(&table),
        address(&ids),
        address(&sampled),
        int(hidden),
        Arg::Uint(vocab as u32),
    ];
    gpu.run(&kernel("embed"), (tokens as u32, 1), 256, &args);
    let got = gpu.download_stored(&out);
    gpu.expect("embed", &got, &want, 0.0);

    let ((x, x_host), (weight, weight_host)) = (gpu.normal(tokens * hidden), gpu.normal(hidden));
    gpu.poison(&out);
    let args = [address(&out), address(&x), address(&weight), int(hidden), Arg::Float(1e-5)];
    gpu.run(&kernel("rms_norm"), (tokens as u32, 1), 128, &args);
    let want: Vec<f64> = x_host
        .chunks_exact(hidden)
        .flat_map(|row| {
            let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let scale = (squares / hidden as f64 + 1e-5).sqrt().recip();
            row.iter().zip(&weight_host).map(move |(&x, &w)| f64::from(x) * scale * f64::from(w))
        })
        .collect();
    let got = gpu.download_stored(&out);
    gpu.expect("rms_norm", &got, &want, gpu.bound());

    let order = gpu.random.order(tokens);
    let rows = gpu.upload(&order[..4]);
    let some = gpu.poisoned::<u16>(4 * hidden);
    gpu.run(&kernel("gather_rows"), (4, 1), 256, &[address(&some), address(&x), address(&rows), int(hidden)]);
    let want: Vec<f64> =
        order[..4].iter().flat_map(|&row| doubles(&x_host[row as usize * hidden..][..hidden])).collect();
    let got = gpu.download_stored(&some);
    gpu.expect("gather_rows", &got, &want, 0.0);

    let n = if gpu.small { 24 } else { 14336 };
    let (gate_up, gate_up_host) = gpu.normal(tokens * 2 * n);
    let activated = gpu.poisoned::<u16>(tokens * n);
    gpu.run(&kernel("silu_mul"), (9, 1), 256, &[address(&activated), address(&gate_up), int(tokens), int(n)]);
    let want: Vec<f64> = gate_up_host
        .chunks_exact(2 * n)
        .flat_map(|row| {
            let (gate, up) = row.split_at(n);
            gate.iter().zip(up).map(|(&g, &u)| {
                let g = f64::from(g);
                g / (1.0 + (-g).exp()) * f64::from(u)
            })
        })
        .collect();
    let got = gpu.download_stored(&activated);
    gpu.expect("silu_mul", &got, &want, gpu.bound());

    let rope = kernel("rope_append");
    for norm in [false, true] {
        let shape = (8, 2, tokens);
        let width = 12 * gpu.head_dim;
        let (qkv, qkv_host) = gpu.normal(tokens * width);
        check_rope(gpu, "", &doubles(&qkv_host), shape, norm, tokens.div_ceil(32), |gpu, arguments| {
            let mut args = vec![address(&qkv), arguments.pool];
            args.extend(arguments.rest);
            gpu.run(&rope, ((tokens * 12).div_ceil(8) as u32, 1), 256, &args);
            gpu.download_stored(&qkv)
        });
    }
    copies(gpu);
}

/// Arguments that RoPE's two forms share.
pub struct RopeArgs {
    pub pool: Arg,
    /// From `positions` to `eps`.
    pub rest: [Arg; 9],
}

/// `run` gives back the queries' rows, `[tokens, (heads + 2 * kv_heads) * head_dim]`; `qkv` is what goes in.
pub fn check_rope(
    gpu: &mut Gpu,
    what: &str,
    qkv: &[f64],
    (heads, kv_heads, tokens): (usize, usize, usize),
    norm: bool,
    blocks: usize,
    run: impl FnOnce(&Gpu, RopeArgs) -> Vec<f32>,
) {
    let (d, half, page) = (gpu.head_dim, gpu.head_dim / 2, BLOCK_SIZE as usize);
    let all = heads + 2 * kv_heads;
    let pool = gpu.poisoned::<u16>(blocks * 2 * kv_heads * page * d);
    let positions: Vec<u32> = (0..tokens).map(|_| gpu.random.below(4000) as u32).collect();
    let mut slots = gpu.random.order(blocks * page)[..tokens].to_vec();
    slots[0] = u32::MAX; // padding: nothing is appended
    slots[1] |= 1 << 31; // the last of its sequence: the values behind it are zeroed
    // Nothing else lies behind it in that block.
    let ends = slots[1] & 0x7fff_ffff;
    for slot in &mut slots[2..] {
        if *slot / BLOCK_SIZE == ends / BLOCK_SIZE && *slot > ends {
            *slot = u32::MAX;
        }
    }
    let frequency = |i: usize| 500_000_f64.powf(-2.0 * i as f64 / d as f64);
    let table: Vec<f32> = (0..4000_u32)
        .flat_map(|position| {
            let angles = (0..half).map(move |i| f64::from(position) * frequency(i));
            angles.clone().map(f64::cos).chain(angles.map(f64::sin)).map(|x| x as f32).collect::<Vec<_>>()
        })
        .collect();
    let ((q_norm, q_host), (k_norm, k_host)) = (gpu.normal(d), gpu.normal(d));
    let (positions_device, slots_device, table) =
        (gpu.upload(&positions), gpu.upload(&slots), gpu.upload(&table));
    let optional = |buffer| if norm { address(buffer) } else { Arg::Address(0) };
    let rest = [
        address(&positions_device),
        address(&slots_device),
        address(&table),
        optional(&q_norm),
        optional(&k_norm),
        int(tokens),
        int(heads),
        int(kv_heads),
        Arg::Float(1e-6),
    ];
    let rows = run(gpu, RopeArgs { pool: address(&pool), rest });
    let stored = gpu.download_stored(&pool);
    let (mut q_got, mut q_want, mut kv_got, mut kv_want) = (vec![], vec![], vec![], vec![]);
    for token in 0..tokens {
        for head in 0..all {
            let at = (token * all + head) * d;
            let mut x = qkv[at..at + d].to_vec();
            if head < heads + kv_heads {
                if norm {
                    let scale = (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + 1e-6).sqrt().recip();
                    let weight = if head < heads { &q_host } else { &k_host };
                    x.iter_mut().zip(weight).for_each(|(x, &w)| *x *= scale * f64::from(w));
                }
                for i in 0..half {
                    let (sin, cos) = (f64::from(positions[token]) * frequency(i)).sin_cos();
                    (x[i], x[i + half]) = (x[i] * cos - x[i + half] * sin, x[i + half] * cos + x[i] * sin);
                }
            }
            if head < heads {
                q_want.extend(x);
                q_got.extend(&rows[at..at + d]);
            } else if slots[token] != u32::MAX {
                let slot = (slots[token] & 0x7fff_ffff) as usize;
                let value = usize::from(head >= heads + kv_heads);
                let kv = (head - heads) % kv_heads;
                let base = ((slot / page * 2 + value) * kv_heads + kv) * page;
                kv_want.extend(x);
                kv_got.extend(&stored[(base + slot % page) * d..][..d]);
                if value == 1 && slots[token] >> 31 == 1 {
                    let behind = (page - 1 - slot % page) * d;
                    kv_want.extend(vec![0.0; behind]);
                    kv_got.extend(&stored[(base + slot % page + 1) * d..][..behind]);
                }
            }
        }
    }
    gpu.expect(&format!("RoPE {what}: queries, norms {norm}"), &q_got, &q_want, gpu.bound());
    gpu.expect(&format!("RoPE {what}: keys and values, norms {norm}"), &kv_got, &kv_want, gpu.bound());
    let written = stored.iter().filter(|x| !x.is_nan()).count();
    gpu.expect_true(&format!("RoPE {what}: nothing else is written"), written == kv_want.len());
}

/// Blocks to one stretch of memory and back into other blocks.
fn copies(gpu: &mut Gpu) {
    let module = gpu.module(compile::COPY_BLOCKS);
    let kernel = |name| Kernel::new(&module, name, 0).unwrap();
    // Pieces of 16 bytes.
    let (blocks, unit, count) = if gpu.small { (9, 37, 3) } else { (41, 4096, 17) };
    let words: Vec<u32> = (0..blocks * unit * 4).map(|_| gpu.random.next() as u32).collect();
    let order = gpu.random.order(blocks);
    let (pool, ids) = (gpu.upload(&words), gpu.upload(&order));
    let stretch = gpu.poisoned::<u32>(count * unit * 4);
    let args = [address(&stretch), address(&pool), address(&ids), int(count), int(unit)];
    gpu.run(&kernel("gather_blocks"), (16, 1), 512, &args);
    let block = |id: u32| &words[id as usize * unit * 4..][..unit * 4];
    let want: Vec<u32> = order[..count].iter().flat_map(|&id| block(id).to_vec()).collect();
    let good = gpu.download(&stretch) == want;
    gpu.expect_true("gather_blocks: equal to the bit", good);

    let other = gpu.poisoned::<u32>(words.len());
    let args = [address(&other), address(&stretch), address(&ids), int(count), int(unit)];
    gpu.run(&kernel("scatter_blocks"), (16, 1), 512, &args);
    let got = gpu.download(&other);
    let good = order.iter().enumerate().all(|(i, &id)| {
        let at = &got[id as usize * unit * 4..][..unit * 4];
        if i < count { at == block(id) } else { at.iter().all(|&word| word == u32::MAX) }
    });
    gpu.expect_true("scatter_blocks: equal to the bit, and nothing else is written", good);
}
