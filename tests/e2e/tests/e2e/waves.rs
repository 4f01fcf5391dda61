//! Waves of a thousand requests with 64 in flight, local and remote prefills mixed, some given up by their clients:
//! when a wave is over, no worker holds a block, and the third takes no more memory than the first.
//!
//! `make soak` runs more and larger waves: DISAGG_WAVES (default 3) and DISAGG_WAVE_REQUESTS (default 1000).

use std::time::Duration;

use disagg_e2e::load::{Client, Random, Tally, Wave};
use disagg_e2e::{Deployment, Plan, procfs};

use crate::{RELEASE, number, prompt, tiny};

/// Simulated workers: quick steps, and every answer depends on every block of its context.
pub(crate) const SIM: &str = "sim:prefill-tokens-per-second=400000,decode-step-ms=1";

/// Prompts of more tokens are prefilled remotely.
pub(crate) const THRESHOLD: &str = "128";

/// Resident memory after the third wave beside that after the first, and after later ones beside that after the third.
const GROWTH_MAX: f64 = 1.02;

/// An idle process gives free memory back within two seconds.
const SETTLES: Duration = Duration::from_secs(3);

/// Two prefill and `decode` decode workers whose pools are so small that every wave uses all of each.
pub(crate) fn sim_plan(decode: usize) -> Plan {
    Plan::of(tiny())
        .workers(2, decode)
        .worker_flags(["--device", SIM, "--num-blocks", "192", "--max-num-batched-tokens", "512"])
        .router(["--max-local-prefill-length", THRESHOLD, "--max-prefill-queue-depth", "16"])
}

/// Short and long prompts, of several lengths.
pub(crate) fn prompts() -> Vec<(Vec<u32>, u32)> {
    let mut random = Random::new(1);
    let length = |seed: u32, random: &mut Random| match seed % 3 {
        0 => 20 + random.below(100) as usize,
        _ => 150 + random.below(600) as usize,
    };
    (0..24).map(|seed| (prompt(length(seed, &mut random), seed), 4 + random.below(20) as u32)).collect()
}

fn processes(deployment: &mut Deployment) -> Vec<(String, u32)> {
    let Deployment { prefill, decode, .. } = deployment;
    let workers = prefill.iter_mut().chain(decode);
    let mut pids: Vec<_> = workers.map(|worker| (worker.name().to_owned(), worker.process().pid())).collect();
    pids.push(("router".to_owned(), deployment.router_mut().process().pid()));
    pids
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_and_memory_are_back_after_every_wave() {
    let waves = number("DISAGG_WAVES", 3);
    let requests = number("DISAGG_WAVE_REQUESTS", 1000);
    let mut deployment = sim_plan(4).start().await;
    let pids = processes(&mut deployment);
    let client = Client::learn(deployment.router().url(), prompts()).await;
    let mut resident: Vec<Vec<u64>> = Vec::new();
    // The first is not measured: what is made once, such as the series of metrics, is there after it.
    for seed in 0..=waves as u64 {
        let wave = Wave { requests, in_flight: 64, cancelled_percent: 20, seed };
        let begun = std::time::Instant::now();
        let tally = client.wave(wave).await;
        println!("wave {seed} in {:.1} s: {tally:?}", begun.elapsed().as_secs_f64());
        check(&tally, requests);
        // Free blocks are at their start value: no block is in use.
        deployment.idle(RELEASE).await;
        if seed > 0 {
            resident.push(settled(&pids).await);
        }
    }
    let mut grown = Vec::new();
    for (index, (name, _)) in pids.iter().enumerate() {
        let mib: Vec<f64> = resident.iter().map(|wave| wave[index] as f64 / f64::from(1 << 20)).collect();
        println!("{name}: {mib:.1?} MiB resident after each wave");
        for (wave, &later) in mib.iter().enumerate().skip(2) {
            let before = if wave == 2 { mib[0] } else { mib[2] };
            if later > before * GROWTH_MAX {
                grown.push(format!("{name} from {before:.2} to {later:.2} MiB in wave {}", wave + 1));
            }
        }
    }
    assert!(grown.is_empty(), "memory grew: {grown:#?}");
}

/// Resident bytes of idle processes: the least within the time in which they give free memory back.
async fn settled(pids: &[(String, u32)]) -> Vec<u64> {
    let mut least = vec![u64::MAX; pids.len()];
    let begun = std::time::Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    while begun.elapsed() < SETTLES {
        ticks.tick().await;
        for (least, (_, pid)) in least.iter_mut().zip(pids) {
            *least = (*least).min(procfs::resident_bytes(*pid));
        }
    }
    least
}

/// Nothing failed, and there was some of everything.
fn check(tally: &Tally, requests: usize) {
    assert_eq!(tally.failed.len() + tally.interrupted, 0, "{tally:?}");
    assert_eq!(tally.right() + tally.cancelled, requests, "{tally:?}");
    let least = requests / 20;
    assert!(tally.local > least && tally.remote > least && tally.cancelled > least, "{tally:?}");
}
