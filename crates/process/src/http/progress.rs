//! How far a connection is with its present request.

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
}

impl Progress {
    pub(super) fn new(slot: Slot) -> Self {
        let (phase, since) = (Phase::Silent, Instant::now());
        let state = State { phase, since, answer_begun: false, old: false, used: false, unread: false };
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

    /// Whether a client that sends its last byte now may be waiting for its answer. One of HTTP/1.0 may, too, or one
    /// that has part of an answer; but these cannot be told from clients that are gone, and nearly all are gone.
    pub(super) fn may_half_close(&self) -> bool {
        let state = self.state.lock();
        match state.phase {
            Phase::Answer => !state.old && !state.answer_begun,
            // Nothing is computed for it any more.
            Phase::Flush => true,
            Phase::Silent | Phase::Head | Phase::Body => false,
        }
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
    }
}
