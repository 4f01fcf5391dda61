//! A worker's load: what it last reported, and what this router has sent it since.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Worker;

/// A report that comes sooner after a request was sent may have been made before the request arrived.
const REPORT_LAG: Duration = Duration::from_millis(25);

/// A worker's own report.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub(crate) struct Load {
    /// Sequences in the running batch.
    pub running: u32,
    /// Requests that wait to run.
    pub waiting: u32,
    /// Sequences whose KV is on its way there.
    pub awaiting_kv: u32,
    /// Blocks in the pool, those held, and of these those in quarantine.
    pub blocks_total: u32,
    pub blocks_used: u32,
    pub blocks_quarantined: u32,
    /// Prefills for other workers, queued or running, and their tokens still to be computed.
    pub prefill_queue: u32,
    pub prefill_queue_tokens: u64,
    /// Recent prefill speed; 0 before the first prefill.
    pub prefill_tokens_per_second: f64,
}

/// What one request adds to a worker's load.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(crate) struct Sending {
    /// KV blocks for the prompt.
    pub blocks: u32,
    /// Prefills for another worker.
    pub prefills: u32,
    /// Their tokens.
    pub prefill_tokens: u64,
}

#[derive(Debug)]
struct Sent {
    at: Instant,
    what: Sending,
    /// The last report has it.
    reported: bool,
}

/// Reports, and what was sent.
#[derive(Debug, Default)]
pub(super) struct LoadBook {
    report: Load,
    sent: BTreeMap<u64, Sent>,
    next: u64,
}

impl LoadBook {
    /// The last report.
    pub(super) fn report(&self) -> Load {
        self.report
    }

    /// Takes in a report.
    pub(super) fn record(&mut self, report: Load, now: Instant) {
        self.report = report;
        for sent in self.sent.values_mut() {
            sent.reported |= now.saturating_duration_since(sent.at) >= REPORT_LAG;
        }
    }

    /// The worker has restarted: nothing that was sent is there any more.
    pub(super) fn restart(&mut self) {
        self.report = Load::default();
        for sent in self.sent.values_mut() {
            sent.reported = true;
        }
    }

    /// Everything sent that no report can have yet.
    pub(super) fn unreported(&self) -> Sending {
        self.sent.values().filter(|sent| !sent.reported).fold(Sending::default(), |sum, sent| Sending {
            blocks: sum.blocks.saturating_add(sent.what.blocks),
            prefills: sum.prefills.saturating_add(sent.what.prefills),
            prefill_tokens: sum.prefill_tokens.saturating_add(sent.what.prefill_tokens),
        })
    }

    /// Requests of this router that are in progress there.
    pub(super) fn in_flight(&self) -> usize {
        self.sent.len()
    }

    pub(super) fn add(&mut self, what: Sending, now: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        self.sent.insert(number, Sent { at: now, what, reported: false });
        number
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.sent.remove(&number);
    }
}

/// Counts a request towards a worker's load until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the accounting"]
pub(crate) struct SentGuard {
    pub(super) worker: Arc<Worker>,
    pub(super) number: u64,
}

impl Drop for SentGuard {
    fn drop(&mut self) {
        self.worker.forget_sent(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Sending = Sending { blocks: 3, prefills: 1, prefill_tokens: 100 };

    #[test]
    fn a_request_counts_until_a_report_can_have_it() {
        let start = Instant::now();
        let mut book = LoadBook::default();
        book.add(ONE, start);
        assert_eq!(book.unreported(), ONE);
        let running = Load { running: 1, ..Load::default() };
        book.record(running, start + REPORT_LAG / 2);
        assert_eq!(book.unreported(), ONE, "this report was on its way already");
        book.record(running, start + REPORT_LAG);
        assert_eq!(book.unreported(), Sending::default());
        assert_eq!((book.report(), book.in_flight()), (running, 1));
    }

    #[test]
    fn a_request_that_ends_counts_no_more() {
        let mut book = LoadBook::default();
        let (first, _second) = (book.add(ONE, Instant::now()), book.add(ONE, Instant::now()));
        assert_eq!(book.unreported().blocks, 6);
        book.remove(first);
        assert_eq!(book.unreported(), ONE);
        book.restart();
        assert_eq!(book.unreported(), Sending::default());
    }
}
