//! How fast KV gets from one process to another over loopback: the `tcp` transport between two workers' pools in main
//! memory, without an engine in between. One handoff after the other, each of the KV of a prompt of the Llama-3.1-8B
//! shape (128 KiB a token), all layers ready at once. What landed last is compared with what was sent. Builds with debug assertions, as profile `ci`'s, also
//! compute a checksum of every chunk on both sides.
//!
//!     cargo run --profile ci -p disagg-worker --example kv_transfer [TOKENS] [HANDOFFS]
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

#[path = "support/shape.rs"]
mod shape;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use disagg_core::{BlockId, Epoch, HandoffId, KvCompat, ModelFingerprint, Role, WorkerId};
use disagg_engine::{Backend, KvMemory, KvPush, KvTransport};
use disagg_worker::args::{EngineLimits, ServeConfig};
use disagg_worker::backend::sim::{SimBackend, Speed};
use disagg_worker::convert::Peer;
use disagg_worker::metrics::Metrics;
use disagg_worker::model::{ModelCard, ModelSpec};
use disagg_worker::server::Server;
use disagg_worker::transport::queue::{PushQueues, QueueingTransport};
use disagg_worker::transport::reach::Reach;
use disagg_worker::transport::stages::Stages;
use disagg_worker::transport::tcp::{PushTarget, Pusher, STAGES};
use disagg_worker::transport::token::LandingToken;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::Xxh3;

const BLOCK_SIZE: u32 = 64;

/// The KV of the 8B shape, with elements of 4 bytes and heads of half the size.
fn spec() -> ModelSpec {
    shape::llama_8b(32, &json!({"head_dim": 64}))
}

fn backend(blocks: u32) -> SimBackend {
    SimBackend::new(&spec(), Speed::default(), BLOCK_SIZE, blocks).unwrap()
}

/// Known to both, since no handoff asks for anything here.
fn token() -> LandingToken {
    LandingToken::from_wire(&[7; LandingToken::BYTES]).unwrap()
}

fn peer() -> Peer {
    Peer { worker: WorkerId::new("prefill"), epoch: Epoch(5) }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let first = args.next();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if first.as_deref() == Some("receive") {
        let tokens: u32 = args.next().unwrap().parse().unwrap();
        return runtime.block_on(receive(tokens.div_ceil(BLOCK_SIZE)));
    }
    let tokens: u32 = first.map_or(3000, |tokens| tokens.parse().unwrap());
    let handoffs: u64 = args.next().map_or(10, |handoffs| handoffs.parse().unwrap());
    runtime.block_on(send(tokens, handoffs));
}

/// The receiving worker. For each number on stdin one handoff, named by it; for "hash" the hash of what landed last.
async fn receive(blocks: u32) {
    let limits = EngineLimits {
        max_num_batched_tokens: 512,
        max_num_seqs: 16,
        max_waiting: 64,
        max_prefill_queue: 8,
        enable_chunked_prefill: true,
        enable_prefix_caching: true,
    };
    let serve = ServeConfig {
        name: WorkerId::new("decode"),
        role: Role::Decode,
        listen: "127.0.0.1:0".into(),
        advertise: None,
        limits,
        lease: Duration::from_secs(5),
        drain: Duration::from_secs(5),
        step_max: Duration::from_mins(5),
        unread_max: ServeConfig::UNREAD_MAX,
    };
    let card = ModelCard {
        served_model_name: "none".into(),
        fingerprint: ModelFingerprint(1),
        max_model_len: 131_072,
        vocab_size: 1024,
        created_seconds: 1,
        files: Vec::new(),
    };
    let backend = backend(blocks);
    let memory = backend.memory();
    let server = Server::bind(serve, card, 131_072, backend, None).await.unwrap();
    let state = Arc::clone(server.state());
    let identity = &state.identity;
    println!("{} {} {}", server.grpc_address(), identity.epoch.0, identity.kv_compat.0);
    tokio::spawn(server.run(std::future::pending()));
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(tokio::io::stdin()));
    // Any order, so that blocks which land in another's place are noticed.
    let reserved: Vec<BlockId> = (0..blocks).rev().map(BlockId).collect();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line == "hash" {
            println!("{}", hash(memory.as_ref(), &reserved));
            continue;
        }
        let handoff = HandoffId { epoch: identity.epoch, number: line.parse().unwrap() };
        let mut landed = state.landing.open(handoff, token(), peer(), reserved.clone());
        println!("open");
        landed.wait_for(disagg_worker::transport::landing::Landed::complete).await.unwrap();
        state.landing.close(handoff);
        println!("landed");
    }
}

async fn send(tokens: u32, handoffs: u64) {
    let blocks = tokens.div_ceil(BLOCK_SIZE);
    let backend = backend(blocks);
    let (memory, layout) = (backend.memory(), backend.layout());
    let sources: Vec<BlockId> = (0..blocks).map(BlockId).collect();
    let mut bytes = vec![0u8; layout.layer_block_bytes()];
    for layer in 0..layout.layers {
        for &block in &sources {
            for (index, word) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *word = (index as u32 ^ layer << 22 ^ block.0 << 12).wrapping_mul(0x9e37_79b9).to_le_bytes();
            }
            memory.write(layer, block, &bytes).unwrap();
        }
    }
    let expected = hash(memory.as_ref(), &sources);

    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["receive", &tokens.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut orders = child.stdin.take().unwrap();
    let greeting = said.next().unwrap();
    let [address, epoch, compat] = greeting.split(' ').collect::<Vec<_>>()[..] else { panic!("{greeting}") };
    let epoch = Epoch(epoch.parse().unwrap());
    let queues = Arc::new(PushQueues::new(&layout));
    let pusher = Pusher {
        stages: Stages::new(memory, STAGES),
        this_worker: peer(),
        kv_compat: KvCompat(compat.parse().unwrap()),
        reach: Reach::of(address.parse().unwrap(), address),
        metrics: Arc::new(Metrics::new()),
        speeds: Arc::default(),
    };
    let size = u64::from(blocks) * layout.block_bytes() as u64;
    println!("{tokens} tokens, {} MB a handoff, {handoffs} handoffs after one to warm up", size / 1_000_000);

    let mut seconds = Vec::new();
    let mut cpu = (0.0, 0.0);
    for number in 1..=handoffs + 1 {
        if number == 2 {
            cpu = cpu_seconds(&child);
        }
        let handoff = HandoffId { epoch, number };
        writeln!(orders, "{number}").unwrap();
        assert_eq!(said.next().unwrap(), "open");
        let begun = Instant::now();
        let ready = queues.open(handoff, blocks).unwrap();
        let pushes = [KvPush { handoff, first: 0, blocks: sources.clone() }];
        let mut transport = QueueingTransport(Arc::clone(&queues));
        (0..layout.layers).for_each(|layer| transport.push_layer(layer, &pushes));
        queues.finish(handoff);
        let (peer, address) = (WorkerId::new("decode"), address.to_owned());
        let target = PushTarget { handoff, peer, address, token: token() };
        pusher.clone().push(target, ready, CancellationToken::new()).await.unwrap().unwrap();
        let took = begun.elapsed().as_secs_f64();
        assert_eq!(said.next().unwrap(), "landed");
        if number > 1 {
            seconds.push(took);
        }
    }
    let after = cpu_seconds(&child);
    writeln!(orders, "hash").unwrap();
    assert_eq!(said.next().unwrap(), expected, "the blocks that landed are those that were sent");
    drop(orders);
    child.wait().unwrap();
    seconds.sort_by(f64::total_cmp);
    let gigabytes = size as f64 / 1e9;
    let rate = |seconds: f64| gigabytes / seconds;
    println!(
        "{:.2} GB/s median, {:.2} lowest, {:.2} highest",
        rate(seconds[seconds.len() / 2]),
        rate(seconds[seconds.len() - 1]),
        rate(seconds[0])
    );
    let moved = gigabytes * handoffs as f64;
    println!(
        "CPU, ms a GB: {:.0} sending, {:.0} receiving",
        (after.0 - cpu.0) / moved * 1e3,
        (after.1 - cpu.1) / moved * 1e3
    );
}

/// Of all layers of `blocks`, in order.
fn hash(memory: &dyn KvMemory, blocks: &[BlockId]) -> String {
    let mut hasher = Xxh3::new();
    let mut bytes = vec![0; memory.layout().layer_block_bytes()];
    for layer in 0..memory.layout().layers {
        for &block in blocks {
            memory.read(layer, block, &mut bytes).unwrap();
            hasher.update(&bytes);
        }
    }
    format!("{:x}", hasher.digest128())
}

/// CPU time of this process and of the child so far.
fn cpu_seconds(child: &Child) -> (f64, f64) {
    let of = |process: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        // utime and stime, in ticks of 10 ms.
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        ticks as f64 / 100.0
    };
    (of("self"), of(&child.id().to_string()))
}
