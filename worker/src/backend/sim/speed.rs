//! How long a simulated step takes.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use disagg_engine::Batch;

const PREFILL: &str = "prefill-tokens-per-second";
const STEP: &str = "decode-step-ms";
const PREFILL_MAX: u32 = 1_000_000_000;
const STEP_MAX_MS: f64 = 60_000.0;

/// Speed of a simulated device. A step takes `decode_step`, which stands for reading the weights once, and longer by
/// the time of its prefill tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Speed {
    /// Prompt tokens computed in a second.
    pub prefill_tokens_per_second: u32,
    /// Time of a step that computes one token for each of its sequences.
    pub decode_step: Duration,
}

/// Round numbers that show prefill and decode apart.
impl Default for Speed {
    fn default() -> Self {
        Self { prefill_tokens_per_second: 20_000, decode_step: Duration::from_millis(10) }
    }
}

/// Text that is no speed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{text:?} is no speed of a simulated device: write {PREFILL}=N (1 to {PREFILL_MAX}) and {STEP}=MS \
     (0 to {STEP_MAX_MS}), one of them or both with a comma between"
)]
pub struct BadSpeed {
    text: String,
}

impl FromStr for Speed {
    type Err = BadSpeed;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadSpeed { text: text.to_owned() };
        let mut speed = Self::default();
        for part in text.split(',') {
            match part.split_once('=') {
                Some((PREFILL, value)) => {
                    let tokens = value.parse().ok().filter(|tokens| (1..=PREFILL_MAX).contains(tokens));
                    speed.prefill_tokens_per_second = tokens.ok_or_else(bad)?;
                }
                Some((STEP, value)) => {
                    let ms: Option<f64> = value.parse().ok().filter(|ms| (0.0..=STEP_MAX_MS).contains(ms));
                    speed.decode_step = Duration::from_secs_f64(ms.ok_or_else(bad)? / 1e3);
                }
                _ => return Err(bad()),
            }
        }
        Ok(speed)
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.decode_step.as_secs_f64() * 1e3;
        write!(f, "{PREFILL}={},{STEP}={ms}", self.prefill_tokens_per_second)
    }
}

impl Speed {
    /// Time of this step. A row of several tokens is a prefill chunk, a row of one a decode.
    pub(super) fn step(&self, batch: &Batch<'_>) -> Duration {
        let rows = batch.cu_seqlens.windows(2).map(|row| row[1] - row[0]);
        let prefill: u32 = rows.filter(|tokens| *tokens > 1).sum();
        self.decode_step
            + Duration::from_secs_f64(f64::from(prefill) / f64::from(self.prefill_tokens_per_second))
    }
}
