//! What one rendering may cost. A template is a program that comes with the model, its input comes from clients, and it
//! runs on the few threads that work on text: everything it does is counted, and each count has a bound.
//!
//! - The engine counts its instructions as *fuel*.
//! - Whatever an instruction of ours does that takes longer the larger its values are (joining, searching, comparing,
//!   printing) counts as *work*: about one for each byte or item that it reads or makes.
//! - The text, and how deep values are nested, have bounds of their own.
//!
//! Fuel and work grow with the input, since honest templates take time in proportion to it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use jiff::civil::DateTime;
use minijinja::value::Object;
use minijinja::{Error, ErrorKind, State, Value};
use parking_lot::Mutex;

/// Instructions that a rendering may take whatever its input is. About 50 ms.
const FUEL_BASE: u64 = 2_000_000;
/// Instructions for each byte of input. The costliest published templates take about a tenth of it.
const FUEL_PER_BYTE: u64 = 32;
/// Most instructions, for any input. About a second.
const FUEL_MAX: u64 = 32_000_000;
/// Work that a rendering may do whatever its input is. About 100 ms.
const WORK_BASE: u64 = 64 << 20;
/// Work for each byte of input: passes over all of it.
const WORK_PER_BYTE: u64 = 32;
/// Largest text in bytes, several times the largest request.
pub(super) const TEXT_BYTES_MAX: usize = 32 << 20;
/// How deep lists and dicts may be nested. Requests are parsed with the same bound.
pub(super) const NESTING_MAX: usize = 128;
/// Values that are put into others before anybody looks how deep they are, since looking takes as long as they are
/// large. Each adds at most two levels, which the stack has room for.
const UNCHECKED_MAX: usize = 256;
/// Frames of loops and macros in one another; a macro counts as four. Bounds the stack.
pub(super) const FRAMES_MAX: usize = 200;
/// Longest padding that a format or filter may ask for, in characters.
pub(super) const WIDTH_MAX: usize = 10_000;
/// Work of an item of a list, beside its content.
pub(super) const ITEM: usize = 4;

/// The variable under which functions and filters find the [`Rendering`]. No template can name it: Jinja's names have
/// no dots.
const VARIABLE: &str = ".rendering";

/// A bound that a rendering reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Limit {
    /// Fuel.
    #[error("it takes too many steps")]
    Steps,
    /// Work.
    #[error("it copies and compares too much text")]
    Work,
    /// Text.
    #[error("its text is longer than {TEXT_BYTES_MAX} bytes")]
    Text,
    /// Nesting of values.
    #[error("its values are nested more than {NESTING_MAX} deep")]
    Nesting,
    /// Calls in calls.
    #[error("its macros and loops are nested too deep")]
    Recursion,
    /// Padding.
    #[error("it pads text to more than {WIDTH_MAX} characters")]
    Width,
}

/// Why a rendering stopped, when it was not an error of the template.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Stop {
    /// The template called `raise_exception`.
    Raised(String),
    /// A bound.
    Limit(Limit),
}

/// One rendering: what it may still do, why it stopped, and what time it is.
#[derive(Debug)]
pub(super) struct Rendering {
    work: AtomicU64,
    /// Values that were put into others.
    nestings: AtomicUsize,
    stop: Mutex<Option<Stop>>,
    /// For `strftime_now`.
    pub now: DateTime,
}

impl Object for Rendering {}

impl Rendering {
    /// Begins to render an input of `input_bytes`.
    pub(super) fn new(input_bytes: usize, now: DateTime) -> Arc<Self> {
        let work = WORK_BASE.saturating_add(WORK_PER_BYTE.saturating_mul(input_bytes as u64));
        Arc::new(Self {
            work: AtomicU64::new(work),
            nestings: AtomicUsize::new(0),
            stop: Mutex::new(None),
            now,
        })
    }

    /// Instructions for an input of `input_bytes`.
    pub(super) fn fuel(input_bytes: usize) -> u64 {
        FUEL_BASE.saturating_add(FUEL_PER_BYTE.saturating_mul(input_bytes as u64)).min(FUEL_MAX)
    }

    /// As a variable of the template.
    pub(super) fn variable(self: &Arc<Self>) -> (&'static str, Value) {
        (VARIABLE, Value::from_dyn_object(Arc::clone(self)))
    }

    /// The rendering that `state` belongs to.
    pub(super) fn of(state: &mut State<'_, '_>) -> Result<Arc<Self>, Error> {
        if let Some(Cached(rendering)) = state.get_extension::<Cached>() {
            return Ok(Arc::clone(rendering));
        }
        let rendering = state
            .lookup(VARIABLE)
            .and_then(|value| value.downcast_object::<Self>())
            .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "called outside of a rendering"))?;
        state.get_or_insert_extension(Cached(Arc::clone(&rendering)));
        Ok(rendering)
    }

    /// Counts work that is about to be done.
    pub(super) fn work(&self, units: usize) -> Result<(), Error> {
        let units = units as u64;
        let left = self.work.load(Ordering::Relaxed);
        if units > left {
            return Err(self.reached(Limit::Work));
        }
        // One thread renders; atomic only because values are shared.
        self.work.store(left - units, Ordering::Relaxed);
        Ok(())
    }

    /// Work that may still be done.
    #[cfg(test)]
    pub(super) fn work_left(&self) -> u64 {
        self.work.load(Ordering::Relaxed)
    }

    /// Counts a value that is put into another one, and tells whether its nesting has to be looked at.
    pub(super) fn must_check_nesting(&self) -> bool {
        self.nestings.fetch_add(1, Ordering::Relaxed) >= UNCHECKED_MAX
    }

    /// Ends the rendering at a bound.
    pub(super) fn reached(&self, limit: Limit) -> Error {
        self.stop(Stop::Limit(limit), limit.to_string())
    }

    /// Ends the rendering with the template's own refusal.
    pub(super) fn raised(&self, message: String) -> Error {
        self.stop(Stop::Raised(message.clone()), message)
    }

    fn stop(&self, stop: Stop, message: String) -> Error {
        // Nothing in Jinja goes on after an error, so the first is the cause.
        self.stop.lock().get_or_insert(stop);
        Error::new(ErrorKind::InvalidOperation, message)
    }

    /// Why it stopped.
    pub(super) fn stopped(&self) -> Option<Stop> {
        self.stop.lock().clone()
    }
}

/// Where a state keeps its rendering after the first look-up.
struct Cached(Arc<Rendering>);

/// Collects the text, up to its bound.
pub(super) struct Text<'a> {
    /// What was written.
    pub bytes: Vec<u8>,
    /// Told when the bound is reached.
    pub rendering: &'a Rendering,
}

impl io::Write for Text<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > TEXT_BYTES_MAX {
            return Err(io::Error::other(self.rendering.reached(Limit::Text)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
