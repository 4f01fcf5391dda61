//! Tests of the landing registry: every refusal, a naive model, and the fence under concurrency.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};

use disagg_core::{Epoch, WorkerId};
use disagg_engine::{KvDtype, KvLayout};
use parking_lot::RwLock;
use proptest::prelude::*;

use super::*;
use crate::transport::stages;

const EPOCH: Epoch = Epoch(5);
const COMPAT: KvCompat = KvCompat(6);
const LAYOUT: KvLayout = KvLayout { layers: 3, kv_heads: 1, head_dim: 2, block_size: 2, dtype: KvDtype::F32 };
const BLOCKS: u32 = 8;

/// A pool that remembers what was written, and asserts that nobody writes while `frozen`.
#[derive(Default)]
struct Pool {
    units: RwLock<HashMap<(u32, BlockId), Vec<u8>>>,
    frozen: AtomicBool,
}

impl KvMemory for Pool {
    fn layout(&self) -> KvLayout {
        LAYOUT
    }

    fn num_blocks(&self) -> u32 {
        BLOCKS
    }

    fn read(&self, layer: u32, block: BlockId, out: &mut [u8]) -> Result<(), KvAccessError> {
        if let Some(bytes) = self.units.read().get(&(layer, block)) {
            out.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn write(&self, layer: u32, block: BlockId, bytes: &[u8]) -> Result<(), KvAccessError> {
        assert!(!self.frozen.load(Ordering::SeqCst), "written after the fence");
        self.units.write().insert((layer, block), bytes.to_vec());
        assert!(!self.frozen.load(Ordering::SeqCst), "the fence returned while a write was under way");
        Ok(())
    }
}

fn handoff(number: u64) -> HandoffId {
    HandoffId { epoch: EPOCH, number }
}

fn peer(name: &str) -> Peer {
    Peer { worker: WorkerId::new(name), epoch: Epoch(9) }
}

fn token(number: u8) -> LandingToken {
    LandingToken::from_wire(&[number; LandingToken::BYTES]).unwrap()
}

fn push(number: u64) -> PushStart {
    PushStart { handoff: handoff(number), prefill_worker: peer("p"), kv_compat: COMPAT, token: token(1) }
}

fn payload(block_count: u32, fill: u8) -> Vec<u8> {
    vec![fill; block_count as usize * LAYOUT.layer_block_bytes()]
}

fn chunk(layer: u32, first_block: u32, block_count: u32, fill: u8) -> KvChunk {
    let payload = payload(block_count, fill);
    let payload_bytes = payload.len() as u32;
    KvChunk { layer, first_block, block_count, checksum: Some(xxh3_64(&payload)), payload_bytes }
}

/// Lands a chunk of blocks that are full of `fill`.
fn land(zone: &Zone, chunk: &KvChunk, fill: u8) -> Result<(), Refusal> {
    let mut stage = stages::make(&zone.memory)?;
    let payload = payload(chunk.block_count, fill);
    stage.bytes_mut()[..payload.len()].copy_from_slice(&payload);
    zone.land(chunk, &mut *stage)
}

fn registry() -> (Arc<Pool>, LandingRegistry) {
    let pool = Arc::new(Pool::default());
    let registry = LandingRegistry::new(pool.clone(), EPOCH, COMPAT);
    (pool, registry)
}

#[test]
fn blocks_land_where_they_were_reserved() {
    let (pool, registry) = registry();
    let progress = registry.open(handoff(1), token(1), peer("p"), vec![BlockId(6), BlockId(2)]);
    let zone = registry.begin(&push(1)).unwrap();
    for layer in 0..LAYOUT.layers {
        assert!(!progress.borrow().complete());
        land(&zone, &chunk(layer, 1, 1, 20 + layer as u8), 20 + layer as u8).unwrap();
        land(&zone, &chunk(layer, 0, 1, 60 + layer as u8), 60 + layer as u8).unwrap();
    }
    assert!(progress.borrow().complete());
    let units = pool.units.read();
    assert_eq!(units.len(), 6);
    assert_eq!(units[&(2, BlockId(6))][0], 62);
    assert_eq!(units[&(2, BlockId(2))][0], 22);
}

#[test]
fn what_does_not_belong_is_refused_and_not_written() {
    let (pool, registry) = registry();
    let _progress = registry.open(handoff(1), token(1), peer("p"), vec![BlockId(0), BlockId(1)]);

    let begin = |push: PushStart| registry.begin(&push).err().unwrap().label();
    let other_epoch = HandoffId { epoch: Epoch(4), number: 1 };
    assert_eq!(begin(push(2)), "unknown-handoff");
    assert_eq!(begin(PushStart { handoff: other_epoch, ..push(1) }), "wrong-epoch");
    assert_eq!(begin(PushStart { prefill_worker: peer("q"), ..push(1) }), "wrong-worker");
    assert_eq!(begin(PushStart { kv_compat: KvCompat(7), ..push(1) }), "wrong-compat");
    assert_eq!(begin(PushStart { token: token(2), ..push(1) }), "wrong-token");
    assert_eq!(begin(PushStart { token: token(2), prefill_worker: peer("q"), ..push(1) }), "wrong-token");

    let zone = registry.begin(&push(1)).unwrap();
    let refused = |chunk: &KvChunk, fill| land(&zone, chunk, fill).unwrap_err().label();
    assert_eq!(refused(&chunk(3, 0, 1, 1), 1), "out-of-range");
    assert_eq!(refused(&chunk(0, 1, 2, 1), 1), "out-of-range");
    assert_eq!(refused(&KvChunk { first_block: u32::MAX, ..chunk(0, 0, 1, 1) }, 1), "out-of-range");
    assert_eq!(refused(&KvChunk { block_count: 2, ..chunk(0, 0, 1, 1) }, 1), "wrong-size");
    assert_eq!(refused(&KvChunk { block_count: 0, ..chunk(0, 0, 1, 1) }, 1), "wrong-size");
    assert_eq!(refused(&chunk(0, 0, 1, 1), 2), "bad-checksum");
    assert!(pool.units.read().is_empty());

    land(&zone, &chunk(0, 1, 1, 1), 1).unwrap();
    // One of the two has landed: neither is written.
    assert_eq!(refused(&chunk(0, 0, 2, 2), 2), "duplicate");
    assert_eq!(pool.units.read().len(), 1);

    registry.close(handoff(1));
    assert_eq!(refused(&chunk(1, 0, 1, 1), 1), "fenced");
    assert_eq!(begin(push(1)), "unknown-handoff");
    assert!(registry.is_empty());
}

/// A pool in which a write ends only once another has begun.
#[derive(Default)]
struct Meeting {
    writers: Mutex<u32>,
    changed: Condvar,
}

impl KvMemory for Meeting {
    fn layout(&self) -> KvLayout {
        LAYOUT
    }

    fn num_blocks(&self) -> u32 {
        BLOCKS
    }

    fn read(&self, _layer: u32, _block: BlockId, _out: &mut [u8]) -> Result<(), KvAccessError> {
        Ok(())
    }

    fn write(&self, _layer: u32, _block: BlockId, _bytes: &[u8]) -> Result<(), KvAccessError> {
        let mut writers = self.writers.lock();
        *writers += 1;
        self.changed.notify_all();
        let waited =
            self.changed.wait_while_for(&mut writers, |writers| *writers < 2, Duration::from_secs(30));
        assert!(!waited.timed_out(), "one connection's write waits for another's");
        Ok(())
    }
}

#[test]
fn chunks_of_several_connections_are_written_beside_each_other() {
    let registry = LandingRegistry::new(Arc::new(Meeting::default()), EPOCH, COMPAT);
    let progress = registry.open(handoff(1), token(1), peer("p"), vec![BlockId(0), BlockId(1)]);
    let zone = registry.begin(&push(1)).unwrap();
    std::thread::scope(|scope| {
        for block in 0..2 {
            let zone = &zone;
            scope.spawn(move || land(zone, &chunk(0, block, 1, 1), 1).unwrap());
        }
    });
    assert_eq!(progress.borrow().units, 2);
}

#[derive(Clone, Debug)]
enum Step {
    Open(u64),
    Close(u64),
    Land { number: u64, layer: u32, first: u32, count: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (1u64..4).prop_map(Step::Open),
        1 => (1u64..4).prop_map(Step::Close),
        8 => (1u64..4, 0u32..4, 0u32..4, 1u32..4)
            .prop_map(|(number, layer, first, count)| Step::Land { number, layer, first, count }),
    ]
}

proptest! {
    /// Against a set of (zone, layer, block): a chunk is written iff its zone is open and all of it is new.
    #[test]
    fn lands_what_the_model_lets_land(steps in prop::collection::vec(step(), 0..80)) {
        const RESERVED: u32 = 3;
        let (pool, registry) = registry();
        let mut receivers = HashMap::new();
        let mut open: HashMap<u64, HashSet<(u32, u32)>> = HashMap::new();
        let mut ever = HashSet::new();
        for (index, step) in steps.into_iter().enumerate() {
            match step {
                Step::Open(number) => {
                    // A handoff is numbered once.
                    if ever.insert(number) {
                        let blocks = (0..RESERVED).map(|i| BlockId((i + number as u32) % BLOCKS)).collect();
                        receivers.insert(number, registry.open(handoff(number), token(1), peer("p"), blocks));
                        open.insert(number, HashSet::new());
                    }
                }
                Step::Close(number) => {
                    registry.close(handoff(number));
                    open.remove(&number);
                }
                Step::Land { number, layer, first, count } => {
                    let fill = index as u8;
                    let landed = registry
                        .begin(&push(number))
                        .and_then(|zone| land(&zone, &chunk(layer, first, count, fill), fill));
                    let units: Vec<_> = (first..first + count).map(|block| (layer, block)).collect();
                    let fits = layer < LAYOUT.layers && first + count <= RESERVED;
                    let expected = open
                        .get(&number)
                        .is_some_and(|done| fits && units.iter().all(|unit| !done.contains(unit)));
                    prop_assert_eq!(landed.is_ok(), expected, "{:?}", landed);
                    if expected {
                        for (layer, block) in &units {
                            let target = BlockId((block + number as u32) % BLOCKS);
                            prop_assert_eq!(pool.units.read()[&(*layer, target)][0], fill);
                        }
                        let done = open.entry(number).or_default();
                        done.extend(units);
                        prop_assert_eq!(receivers[&number].borrow().units, done.len());
                    }
                }
            }
            prop_assert_eq!(registry.len(), open.len());
        }
    }
}

/// A pool whose one write goes on until the fence has been asked for, and then a while longer.
struct Lingering {
    zone: OnceLock<Arc<Zone>>,
    begun: Barrier,
    ended: AtomicBool,
}

impl Lingering {
    const WHILE: Duration = Duration::from_millis(100);
}

impl KvMemory for Lingering {
    fn layout(&self) -> KvLayout {
        LAYOUT
    }

    fn num_blocks(&self) -> u32 {
        BLOCKS
    }

    fn read(&self, _layer: u32, _block: BlockId, _out: &mut [u8]) -> Result<(), KvAccessError> {
        Ok(())
    }

    fn write(&self, _layer: u32, _block: BlockId, _bytes: &[u8]) -> Result<(), KvAccessError> {
        let zone = self.zone.get().unwrap();
        self.begun.wait();
        let asked = Instant::now();
        while zone.state.lock().open {
            assert!(asked.elapsed() < Duration::from_secs(30), "the fence is asked for");
            std::thread::yield_now();
        }
        let closing = Instant::now();
        while closing.elapsed() < Self::WHILE {
            assert!(!zone.closed.is_cancelled(), "the fence is there while a write is under way");
            std::thread::yield_now();
        }
        self.ended.store(true, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn the_fence_waits_for_a_write_under_way() {
    let pool =
        Arc::new(Lingering { zone: OnceLock::new(), begun: Barrier::new(2), ended: AtomicBool::new(false) });
    let registry = LandingRegistry::new(pool.clone(), EPOCH, COMPAT);
    let progress = registry.open(handoff(1), token(1), peer("p"), vec![BlockId(0)]);
    let zone = registry.begin(&push(1)).unwrap();
    assert!(pool.zone.set(Arc::clone(&zone)).is_ok());
    std::thread::scope(|scope| {
        scope.spawn(|| land(&zone, &chunk(0, 0, 1, 1), 1).unwrap());
        pool.begun.wait();
        registry.close(handoff(1));
        assert!(pool.ended.load(Ordering::SeqCst), "`close` returned while a write was under way");
    });
    assert_eq!(progress.borrow().units, 1);
}

/// Writers hammer a zone while it is closed: after `close` has returned, the pool is frozen and every write panics.
#[test]
fn nothing_is_written_once_close_has_returned() {
    for round in 0..200u64 {
        let (pool, registry) = registry();
        let _progress =
            registry.open(handoff(round + 1), token(1), peer("p"), (0..BLOCKS).map(BlockId).collect());
        let zone = registry.begin(&push(round + 1)).unwrap();
        let start = Barrier::new(3);
        std::thread::scope(|scope| {
            for half in 0..2 {
                let (zone, start) = (&zone, &start);
                scope.spawn(move || {
                    start.wait();
                    for layer in 0..LAYOUT.layers {
                        for block in 0..BLOCKS / 2 {
                            let _ = land(zone, &chunk(layer, half * BLOCKS / 2 + block, 1, 1), 1);
                        }
                    }
                });
            }
            start.wait();
            for _ in 0..round % 50 {
                std::hint::spin_loop();
            }
            registry.close(handoff(round + 1));
            pool.frozen.store(true, Ordering::SeqCst);
        });
    }
}
