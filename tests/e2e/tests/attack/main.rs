//! Attacks on a running deployment over loopback, each beside an honest client.
//!
//! `field.rs` is what is attacked (a router, two prefill and two decode workers that are simulated) and what is watched of
//! it; `honest.rs` the client that must not notice; `attacker.rs` what attackers have in common; each file of `attacks/`
//! one attack. Of each it is asked:
//!
//! - The honest client's time to first token stays within three times that of a quiet moment (or under a floor that is
//!   far above noise), every answer of its is whole and the same as before.
//! - Router and workers stay within their memory.
//! - The attackers are treated as the attack's own file says: refused with this status, closed after that time.
//! - When it is over, everything is as it was: no sequence, no block, no request in flight, no connection.
//!
//! `make attack` runs the long form: more attackers for a longer time, and deadlines are waited for. `make e2e` runs the
//! short one. DISAGG_ATTACK names attacks to run (part of a name), DISAGG_ATTACK_SEED another seed.

#![allow(clippy::print_stdout)] // its table

mod attacker;
mod attacks;
mod field;
mod honest;

use std::sync::Arc;
use std::time::{Duration, Instant};

use attacker::{Attack, Attackers};
use attacks::ATTACKS;
use field::{Field, Peaks};
use honest::{Honest, Latency};

/// How much slower than in a quiet moment an honest first token may be.
const SLOWER_MAX: u32 = 3;

/// Honest requests that tell what a quiet moment is.
const QUIET_REQUESTS: usize = 24;

/// An attack has begun in earnest within this time.
const IN_PLACE: Duration = Duration::from_secs(30);

/// An attack that was told to stop has stopped within this time.
const STOPPED: Duration = Duration::from_secs(30);

/// How long and how large attacks are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// `make attack`: deadlines of the product are waited for.
    pub(crate) long: bool,
    /// How long the honest client asks beside the attack.
    pub(crate) beside: Duration,
}

impl Scale {
    fn from_env() -> Self {
        let long = std::env::var_os("DISAGG_ATTACK_LONG").is_some_and(|value| !value.is_empty());
        Self { long, beside: Duration::from_secs(if long { 40 } else { 2 }) }
    }

    /// So many in the short form, four times as many in the long one.
    pub(crate) fn number(self, short: usize) -> usize {
        if self.long { 4 * short } else { short }
    }
}

/// What one attack has done.
struct Row {
    name: &'static str,
    quiet: Latency,
    beside: Latency,
    peaks: Peaks,
    seconds: f64,
    /// What became of the attackers.
    attackers: String,
    problems: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_client_does_not_notice() {
    let scale = Scale::from_env();
    let seed = std::env::var("DISAGG_ATTACK_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let only = std::env::var("DISAGG_ATTACK").unwrap_or_default();
    println!("{} form, seed {seed}", if scale.long { "long" } else { "short" });
    let mut field = Field::start(scale, seed).await;
    attacker::allow_many_connections();
    let mut rows = Vec::new();
    for attack in ATTACKS.iter().filter(|attack| attack.name.contains(&only)) {
        let row = run(attack, &field).await;
        print_row(&row, rows.is_empty());
        if !row.problems.is_empty() {
            // What it has done to these processes is not the next attack's.
            drop(field);
            field = Field::start(scale, seed).await;
        }
        rows.push(row);
    }
    assert!(!rows.is_empty(), "DISAGG_ATTACK names no attack: {only:?}");
    let failed: Vec<_> = rows.iter().filter(|row| !row.problems.is_empty()).map(|row| row.name).collect();
    assert!(
        failed.is_empty(),
        "{} of {} attacks were noticed: {}",
        failed.len(),
        rows.len(),
        failed.join(", ")
    );
}

async fn run(attack: &Attack, field: &Field) -> Row {
    let begun = Instant::now();
    let mut problems = Vec::new();
    let honest = Honest::new(field);
    let quiet = honest.requests(QUIET_REQUESTS).await;
    problems.extend(quiet.problems("before it"));
    let before = field.standing().await;

    let watch = field.watch();
    let (attackers, control) = Attackers::new(field);
    let attacking = tokio::spawn((attack.run)(attackers));
    if !control.in_place(IN_PLACE).await {
        problems.push(format!("the attack was not in place after {IN_PLACE:?}"));
    }
    let beside = honest.while_attacked(field.scale.beside).await;
    problems.extend(beside.problems("beside it"));
    let bound = (quiet.latency().p99 * SLOWER_MAX).max(attack.floor);
    if beside.latency().p99 > bound {
        problems.push(format!("first token after {:.2?}, more than {bound:.2?}", beside.latency().p99));
    }
    control.stop();
    let attackers = match tokio::time::timeout(STOPPED, attacking).await {
        Ok(Ok(Ok(said))) => said,
        Ok(Ok(Err(problem))) => {
            problems.push(problem.clone());
            problem
        }
        Ok(Err(panic)) => {
            problems.push(panic.to_string());
            "panicked".to_owned()
        }
        Err(_) => {
            problems.push(format!("the attackers had not stopped after {STOPPED:?}"));
            "not stopped".to_owned()
        }
    };
    let peaks = watch.end().await;
    problems.extend(peaks.problems());
    problems.extend(field.is_as(&before).await);
    Row {
        name: attack.name,
        quiet: quiet.latency(),
        beside: beside.latency(),
        peaks,
        seconds: begun.elapsed().as_secs_f64(),
        attackers,
        problems,
    }
}

/// One line a row: times in ms, memory in MiB.
fn print_row(row: &Row, is_first: bool) {
    if is_first {
        println!(
            "{:16} {:>9} {:>9} {:>9} {:>7} {:>7} {:>8} {:>6}  attackers",
            "attack", "quiet p99", "p50", "p99", "asked", "router", "workers", "s"
        );
    }
    let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
    println!(
        "{:16} {:>9} {:>9} {:>9} {:>7} {:>7} {:>8} {:>6.1}  {}",
        row.name,
        ms(row.quiet.p99),
        ms(row.beside.p50),
        ms(row.beside.p99),
        row.beside.requests,
        row.peaks.router >> 20,
        row.peaks.workers >> 20,
        row.seconds,
        row.attackers
    );
    for problem in &row.problems {
        println!("{:16} PROBLEM: {problem}", "");
    }
}

/// Shared by attackers and the honest client.
pub(crate) type SharedField = Arc<field::Target>;
