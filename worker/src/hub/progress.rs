//! How far a download is: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Between two lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where lines go: a log, or what the user reads.
pub type Lines = Arc<dyn Fn(&str) + Send + Sync>;

/// The progress of one model's download. Shared by the files that come at the same time.
pub(super) struct Progress {
    /// For people.
    what: String,
    total: u64,
    /// On disk, those of earlier starts included.
    done: AtomicU64,
    /// Of these, what was there at the beginning.
    before: AtomicU64,
    begun: Instant,
    last_line: Mutex<Instant>,
    bar: Option<ProgressBar>,
    lines: Lines,
}

impl Progress {
    /// `total` bytes are to be on disk at the end.
    pub(super) fn new(what: String, total: u64, no_bar: bool, lines: Lines) -> Self {
        let bar = (!no_bar && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let form = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
            if let Ok(style) = ProgressStyle::with_template(form) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.with_message(what.clone())
        });
        let now = Instant::now();
        Self {
            what,
            total,
            done: AtomicU64::new(0),
            before: AtomicU64::new(0),
            begun: now,
            last_line: Mutex::new(now),
            bar,
            lines,
        }
    }

    /// Something that people should read now.
    pub(super) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| (self.lines)(line)),
            None => (self.lines)(line),
        }
    }

    /// Bytes that an earlier start has left.
    pub(super) fn found(&self, bytes: u64) {
        self.before.fetch_add(bytes, Ordering::Relaxed);
        self.advance(bytes);
    }

    /// Bytes that have come.
    pub(super) fn came(&self, bytes: u64) {
        self.advance(bytes);
        if self.bar.is_some() {
            return;
        }
        let mut last = self.last_line.lock();
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            (self.lines)(&self.line());
        }
    }

    /// Bytes that were counted and have been thrown away.
    pub(super) fn lost(&self, bytes: u64) {
        let done = self.done.fetch_sub(bytes, Ordering::Relaxed).saturating_sub(bytes);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// All is there.
    pub(super) fn finish(&self) {
        match &self.bar {
            Some(bar) => bar.finish_and_clear(),
            None => (self.lines)(&format!("{}: {} are there", self.what, bytes(self.total))),
        }
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    fn line(&self) -> String {
        let done = self.done.load(Ordering::Relaxed);
        let come = done.saturating_sub(self.before.load(Ordering::Relaxed));
        let rate = come as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        let share = 100.0 * done as f64 / self.total.max(1) as f64;
        let (done, total) = (bytes(done), bytes(self.total));
        format!("{}: {done} of {total} ({share:.0} %), {}/s", self.what, bytes(rate as u64))
    }
}

/// A number of bytes for people, in the decimal units that the hub shows.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn without_a_terminal_a_line_comes_now_and_then() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&said);
        let lines: Lines = Arc::new(move |line| lines.lock().push(line.to_owned()));
        let progress = Progress::new("org/name".to_owned(), 4_000_000, true, lines);
        progress.found(1_000_000);
        progress.came(500_000);
        assert!(said.lock().is_empty(), "too soon");
        tokio::time::advance(LINE_EVERY).await;
        progress.came(500_000);
        progress.came(1);
        progress.lost(1);
        assert_eq!(*said.lock(), ["org/name: 2.0 MB of 4.0 MB (50 %), 100.0 kB/s"]);
        progress.finish();
        assert_eq!(said.lock().last().expect("a line"), "org/name: 4.0 MB are there");
    }

    #[test]
    fn bytes_have_units() {
        for (count, text) in
            [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (16_060_556_376, "16.1 GB")]
        {
            assert_eq!(bytes(count), text);
        }
    }
}
