//! Running slots are shared between requests: the scheduler alone, with memory and budget for everybody, against a
//! naive model that looks at all sequences anew in every step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use disagg_core::hash::BlockHasher;
use disagg_core::{ModelFingerprint, SequenceId};
use proptest::prelude::*;

use super::harness::{Shape, Worker, request};
use crate::pool::BlockPool;
use crate::request::FinishReason;
use crate::scheduler::{Limits, Scheduler};
use crate::sequence::{Kind, Sequence, SequenceKey, State};
use crate::sequences::Sequences;

#[derive(Clone, Debug)]
enum Action {
    /// A request of this many choices, each of this many tokens.
    Submit(u32, u32),
    Steps(u8),
    Cancel(usize),
    Pause(usize),
    Resume(usize),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        6 => (prop_oneof![3 => Just(1u32), 2 => 2u32..9], 1u32..10).prop_map(|(n, len)| Action::Submit(n, len)),
        8 => (1u8..4).prop_map(Action::Steps),
        1 => (0usize..8).prop_map(Action::Cancel),
        1 => (0usize..8).prop_map(Action::Pause),
        2 => (0usize..8).prop_map(Action::Resume),
    ];
    prop::collection::vec(action, 1..40)
}

/// Who should run.
struct Naive {
    slots: usize,
    running: BTreeSet<SequenceKey>,
}

impl Naive {
    /// Gives out slots by rank and arrival; nobody loses one to a sequence of the same rank.
    fn schedule(&mut self, live: &BTreeMap<SequenceId, Vec<u32>>, paused: &BTreeSet<SequenceId>) {
        let ranks: BTreeMap<SequenceKey, usize> = live
            .iter()
            .filter(|(request, _)| !paused.contains(request))
            .flat_map(|(&request, choices)| {
                choices.iter().enumerate().map(move |(rank, &choice)| (SequenceKey { request, choice }, rank))
            })
            .collect();
        self.running.retain(|key| ranks.contains_key(key));
        loop {
            let turn = |key: &&SequenceKey| (ranks[*key], **key);
            let Some(first) = ranks.keys().filter(|key| !self.running.contains(key)).min_by_key(turn) else {
                return;
            };
            if self.running.len() >= self.slots {
                let last = *self.running.iter().max_by_key(turn).expect("there are slots");
                if ranks[&last] <= ranks[first] {
                    return;
                }
                self.running.remove(&last);
            }
            self.running.insert(*first);
        }
    }
}

/// The scheduler, and what an engine does around it.
struct Real {
    scheduler: Scheduler,
    sequences: Sequences,
    pool: BlockPool,
    next: u64,
}

impl Real {
    fn submit(&mut self, choices: u32, tokens: u32) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        let mut asked = request(vec![1, 2], tokens);
        asked.choices = choices;
        let hasher = BlockHasher::new(ModelFingerprint(1), 4, "");
        let sequence = Sequence::new(id, Arc::new(asked), Kind::Generate, State::Waiting, hasher, false);
        self.scheduler.enqueue(self.sequences.insert(sequence));
        id
    }

    fn end(&mut self, key: SequenceKey) {
        let mut sequence = self.sequences.remove(key).expect("it lives");
        sequence.set_state(State::Finished);
        self.scheduler.remove(key);
        self.pool.release(&sequence.take_blocks());
    }

    /// Schedules, and compares who runs; then computes.
    fn step(&mut self, naive: &mut Naive, paused: &BTreeSet<SequenceId>) {
        let rows = self.scheduler.schedule(&mut self.sequences, &mut self.pool, false);
        let mut live = BTreeMap::<_, Vec<u32>>::new();
        for (key, _) in self.sequences.iter() {
            live.entry(key.request).or_default().push(key.choice);
        }
        naive.schedule(&live, paused);
        let running: BTreeSet<_> = self.scheduler.turns().running().iter().map(|turn| turn.key).collect();
        assert_eq!(running, naive.running);
        assert_eq!(rows.iter().map(|row| row.key).collect::<BTreeSet<_>>(), running, "all of them get on");

        let slots = |request| running.iter().filter(|key| key.request == request).count();
        for (&request, choices) in live.iter().filter(|(request, _)| !paused.contains(request)) {
            if slots(request) < choices.len() {
                let most = live.keys().map(|other| slots(*other)).max().unwrap_or_default();
                assert!(most <= slots(request) + 1, "another holds {most} slots while {request:?} waits");
            }
        }
        for row in rows {
            let Some(sequence) = self.sequences.held_mut(row.key) else { continue };
            sequence.num_computed_tokens += row.len;
            assert!(row.sample);
            let choices = std::mem::replace(&mut sequence.choices, row.key.choice..row.key.choice + 1);
            sequence.tokens.push(3);
            let forks: Vec<_> = choices.skip(1).map(|choice| sequence.fork(choice, 3, Vec::new())).collect();
            let mut ended: Vec<_> = sequence.finish_reason(64).map(|_| row.key).into_iter().collect();
            for fork in forks {
                let key = fork.key;
                ended.extend(fork.finish_reason(64).map(|_| key));
                self.scheduler.enqueue(self.sequences.insert(fork));
            }
            for key in ended {
                self.end(key);
            }
        }
    }
}

fn run(slots: usize, actions: &[Action]) {
    let limits = Limits { sequences: slots, tokens: 4096, chunked_prefill: true, max_len: 64 };
    let mut real = Real {
        scheduler: Scheduler::new(limits),
        sequences: Sequences::default(),
        pool: BlockPool::new(2048, 4),
        next: 1,
    };
    let mut naive = Naive { slots, running: BTreeSet::new() };
    let mut paused = BTreeSet::new();
    let mut ids = Vec::new();
    for action in actions {
        match *action {
            Action::Submit(choices, tokens) => ids.push(real.submit(choices, tokens)),
            Action::Steps(count) => (0..count).for_each(|_| real.step(&mut naive, &paused)),
            Action::Cancel(which) => {
                let Some(id) = ids.get(which) else { continue };
                let keys: Vec<_> = real.scheduler.turns().of_request(*id).collect();
                for key in keys {
                    real.end(key);
                }
                paused.remove(id);
            }
            Action::Pause(which) => {
                let alive = |id: &&SequenceId| real.sequences.iter().any(|(key, _)| key.request == **id);
                if let Some(id) = ids.get(which).filter(alive) {
                    real.scheduler.pause(*id, &mut real.sequences);
                    naive.running.retain(|key| key.request != *id);
                    paused.insert(*id);
                }
            }
            Action::Resume(which) => {
                let Some(id) = ids.get(which) else { continue };
                real.scheduler.resume(*id, &mut real.sequences);
                paused.remove(id);
            }
        }
    }
    for id in ids {
        real.scheduler.resume(id, &mut real.sequences);
    }
    paused.clear();
    // At most 40 requests of 8 choices of 9 tokens and a prompt.
    for _ in 0..40 * 8 * 12 {
        real.step(&mut naive, &paused);
    }
    assert!(real.sequences.iter().next().is_none(), "somebody starves");
    assert_eq!(real.pool.used(), 0);
}

proptest! {
    #![proptest_config(super::harness::cases())]

    #[test]
    fn slots_go_by_rank_and_arrival(slots in 1usize..7, actions in actions()) {
        run(slots, &actions);
    }
}

/// As in the report of an attack: one request of many long choices, and others that come after it.
#[test]
fn a_request_of_many_choices_holds_no_slot_that_another_waits_for() {
    for depth in [1, 2] {
        let mut worker = Worker::new(Shape { depth, seqs: 4, blocks: 128, ..Shape::default() });
        let mut hog = request(vec![1; 6], 50);
        hog.choices = 16;
        let hog = worker.submit(hog);
        (0..6).for_each(|_| worker.step());
        assert_eq!(worker.engine.load().running, 4, "alone, it has every slot");
        for token in 2..40 {
            let honest = worker.submit(request(vec![token % 24; 6], 5));
            // One step may be under way; the next has a row of it.
            let mut steps = 0;
            while worker.finished(honest, 0).is_none() {
                worker.step();
                steps += 1;
                assert!(steps <= 6 + 2 * (depth - 1), "{honest:?} waits");
            }
        }
        // The hog went on beside them: one choice after the other, even while there is always somebody else.
        let alive = |worker: &Worker| (0..16).filter(|c| worker.finished(hog, *c).is_none()).count();
        let before = alive(&worker);
        for token in 0..200 {
            for more in 0..4 {
                // More than can run; the queue is full in the end.
                let late = request(vec![(token + more) % 24; 3], 1);
                if let Ok(id) = worker.engine.submit(late.clone()) {
                    worker.expect(id, late);
                }
            }
            worker.step();
        }
        assert!(alive(&worker) < before, "the request of many choices starves");
        worker.run();
        assert!((0..16).all(|choice| worker.finished(hog, choice) == Some(FinishReason::Length)));
        worker.assert_as_expected();
        worker.assert_idle();
    }
}

#[test]
fn choices_that_hold_all_memory_give_it_to_others() {
    for depth in [1, 2] {
        // 16 blocks of 4: eight choices fill them.
        let mut worker = Worker::new(Shape { depth, blocks: 16, ..Shape::default() });
        let mut hog = request(vec![1; 4], 30);
        hog.choices = 8;
        worker.submit(hog);
        (0..12).for_each(|_| worker.step());
        let honest = worker.submit(request(vec![2; 20], 4));
        let mut steps = 0;
        while worker.finished(honest, 0).is_none() {
            worker.step();
            steps += 1;
            assert!(steps <= 8, "it waits for memory: {:?}", worker.engine.load());
        }
        worker.run();
        worker.assert_as_expected();
        worker.assert_idle();
    }
}

#[test]
fn the_choices_of_a_request_count_once_in_the_queue() {
    let mut config = Shape { seqs: 1, ..Shape::default() }.config();
    config.max_waiting = 2;
    let backend = crate::fake::FakeBackend::new(super::harness::MODEL, 32, 4, 1);
    let mut engine = crate::engine::Engine::new(config, backend).unwrap();
    let mut many = request(vec![1; 6], 20);
    many.choices = 128;
    engine.submit(many.clone()).unwrap();
    engine.step(&mut crate::kv::NoTransport).unwrap();
    assert_eq!(engine.load().waiting, 127);
    engine.submit(many.clone()).unwrap();
    engine.submit(many.clone()).unwrap();
    let refused = engine.submit(many);
    assert_eq!(refused, Err(crate::engine::AdmitError::QueueFull { waiting: 2 }));
}
