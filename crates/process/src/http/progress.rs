//! How far a connection is with its present request.

use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::slots::Slot;

/// What a connection waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// For a request.
    Silent,
    /// For the rest of a head.
    Head,
    /// For the rest of a body, or whoever reads it.
    Body,
    /// For the answer to a request that came whole.
    Answer,
    /// For the client to take what is left of the answer.
    Flush,
}

/// What it means that a client sends no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// It may be waiting for its answer. One of HTTP/1.0 may, too, or one that has part of an answer; but these cannot be
    /// told from clients that are gone, and nearly all are gone.
    HalfClosed,
    /// It has gone, in the middle of a request or between two.
    Gone,
    /// The rest of the body may have been received and not been read yet by whoever serves the request.
    NotKnown,
}

/// Told by whoever reads, serves and writes one connection.
#[derive(Debug)]
pub(super) struct Progress {
    slot: Slot,
    state: Mutex<State>,
}

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // each is a fact of its own
struct State {
    phase: Phase,
    since: Instant,
    /// Something of the answer may have been written.
    answer_begun: bool,
    /// The client speaks HTTP/1.0.
    old: bool,
    /// There has been a request.
    used: bool,
    /// The answer ended before the body had been read.
    unread: bool,
    /// Whoever serves the request has read all of the body that came, and waits for more.
    wants_body: bool,
    /// Woken when more is known than [`Ended::NotKnown`].
    waits: Option<Waker>,
}

impl Progress {
    pub(super) fn new(slot: Slot) -> Self {
        let (phase, since) = (Phase::Silent, Instant::now());
        let state = State {
            phase,
            since,
            answer_begun: false,
            old: false,
            used: false,
            unread: false,
            wants_body: false,
            waits: None,
        };
        Self { slot, state: Mutex::new(state) }
    }

    pub(super) fn slot(&self) -> &Slot {
        &self.slot
    }

    pub(super) fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    /// Bytes have come in.
    pub(super) fn received(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Silent {
            state.enter(Phase::Head);
        }
    }

    /// A head is complete.
    pub(super) fn request_begins(&self, old: bool, has_body: bool) {
        let mut state = self.state.lock();
        state.enter(if has_body { Phase::Body } else { Phase::Answer });
        (state.old, state.used, state.answer_begun, state.unread) = (old, true, false, has_body);
        state.wants_body = false;
        self.slot.works();
    }

    /// Its body, too.
    pub(super) fn body_ends(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Body {
            state.enter(Phase::Answer);
            state.unread = false;
        }
    }

    /// Whoever serves the request reads its body: whether there was some.
    pub(super) fn body_read(&self, some: bool) {
        let mut state = self.state.lock();
        state.wants_body = !some;
        if state.wants_body {
            state.wake();
        }
    }

    /// The head of the answer is about to be written.
    pub(super) fn answer_begins(&self) {
        self.state.lock().answer_begun = true;
    }

    /// All of the answer has been made; it may not be sent yet.
    pub(super) fn answer_ends(&self) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Body | Phase::Answer) {
            state.enter(Phase::Flush);
        }
    }

    /// All that was written has been sent.
    pub(super) fn flushed(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Flush {
            state.enter(Phase::Silent);
            self.slot.is_quiet();
        }
    }

    /// When the client should have sent what is waited for. `None`: it need not send anything.
    pub(super) fn read_deadline(&self, head: Duration, idle: Duration) -> Option<Instant> {
        let state = self.state.lock();
        match state.phase {
            Phase::Silent if state.used => Some(state.since + idle),
            Phase::Silent | Phase::Head => Some(state.since + head),
            Phase::Body | Phase::Answer | Phase::Flush => None,
        }
    }

    /// The client sends no more.
    pub(super) fn ended(&self) -> Ended {
        let state = self.state.lock();
        match state.phase {
            Phase::Answer if !state.old && !state.answer_begun => Ended::HalfClosed,
            // Nothing is computed for it any more.
            Phase::Flush => Ended::HalfClosed,
            Phase::Body if !state.wants_body => Ended::NotKnown,
            Phase::Silent | Phase::Head | Phase::Body | Phase::Answer => Ended::Gone,
        }
    }

    /// Wakes `waker` when [`Self::ended`] has more to say.
    pub(super) fn wake_when_known(&self, waker: &Waker) {
        self.state.lock().waits = Some(waker.clone());
    }

    /// Whether an interim answer (1xx) can be sent now.
    pub(super) fn takes_interim_answer(&self) -> bool {
        let state = self.state.lock();
        state.phase == Phase::Answer && !state.answer_begun
    }

    /// Whether an answer, or the rest of one, is owed to the client.
    pub(super) fn owes_answer(&self) -> bool {
        matches!(self.phase(), Phase::Answer | Phase::Flush)
    }

    /// Whether a client may still be sending what nobody will read.
    pub(super) fn has_unread(&self) -> bool {
        let state = self.state.lock();
        state.unread || state.phase == Phase::Head
    }
}

impl State {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waits.take() {
            waker.wake();
        }
    }
}
