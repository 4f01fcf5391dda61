//! Single decisions, and a simulation of replicas whose messages are late or lost and who are suspended at any time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;

const LEASE: Duration = Duration::from_secs(15);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn record(holder: Option<&str>, renewed: &str, version: &str) -> Record {
    Record {
        holder: holder.map(str::to_owned),
        renewed: Some(renewed.to_owned()),
        duration: Some(LEASE),
        transitions: 4,
        version: version.to_owned(),
    }
}

fn take(version: &str, transitions: i32) -> Next {
    Next::Take { version: version.to_owned(), transitions }
}

#[test]
fn a_free_lease_is_taken_at_once() {
    let now = Instant::now();
    let mut candidate = Candidate::new("a".to_owned(), LEASE);
    assert_eq!(candidate.read(record(None, "", "7"), now), take("7", 5));
    assert_eq!(candidate.leads_until(), None, "it does not lead before the write has succeeded");
    candidate.wrote("8".to_owned(), now);
    assert_eq!((candidate.to_renew(), candidate.leads_until()), (Some("8"), Some(now + seconds(10))));
}

#[test]
fn a_leader_that_renews_is_left_alone_and_one_that_is_silent_is_not() {
    let start = Instant::now();
    let mut candidate = Candidate::new("b".to_owned(), LEASE);
    for round in 0..20 {
        let now = start + seconds(round * 14);
        assert_eq!(candidate.read(record(Some("a"), &round.to_string(), "7"), now), Next::Wait);
    }
    let last = start + seconds(19 * 14);
    // Somebody annotates it: no sign of life.
    assert_eq!(candidate.read(record(Some("a"), "19", "8"), last + seconds(14)), Next::Wait);
    assert_eq!(candidate.read(record(Some("a"), "19", "9"), last + seconds(15)), take("9", 5));
}

#[test]
fn a_longer_promise_of_the_holder_counts() {
    let start = Instant::now();
    let mut candidate = Candidate::new("b".to_owned(), LEASE);
    let mut long = record(Some("a"), "1", "7");
    long.duration = Some(seconds(60));
    assert_eq!(candidate.read(long.clone(), start), Next::Wait);
    assert_eq!(candidate.read(long.clone(), start + seconds(59)), Next::Wait);
    assert_eq!(candidate.read(long, start + seconds(60)), take("7", 5));
}

#[test]
fn a_pod_takes_up_what_its_last_process_held() {
    let mut candidate = Candidate::new("a".to_owned(), LEASE);
    assert_eq!(candidate.read(record(Some("a"), "1", "7"), Instant::now()), take("7", 4));
}

#[test]
fn who_finds_another_holder_leads_no_more() {
    let now = Instant::now();
    let mut candidate = Candidate::new("a".to_owned(), LEASE);
    candidate.wrote("8".to_owned(), now);
    assert_eq!(candidate.read(record(Some("b"), "2", "9"), now + seconds(1)), Next::Wait);
    assert_eq!((candidate.to_renew(), candidate.leads_until()), (None, None));
}

/// One exchange of a replica with the API server.
#[derive(Clone, Debug)]
struct Exchange {
    /// Milliseconds until the request arrives; nothing: it never does.
    there: Option<u64>,
    /// Milliseconds until the answer arrives; nothing: it never does, and the replica notices after a while.
    back: Option<u64>,
    /// Milliseconds that the replica is suspended before it goes on.
    suspended: u64,
}

fn exchanges() -> impl Strategy<Value = Vec<Vec<Exchange>>> {
    let late =
        || prop_oneof![6 => (0..50u64).prop_map(Some), 2 => (0..20_000u64).prop_map(Some), 1 => Just(None)];
    let suspended = prop_oneof![8 => Just(0), 1 => 0..40_000u64];
    let exchange =
        (late(), late(), suspended).prop_map(|(there, back, suspended)| Exchange { there, back, suspended });
    prop::collection::vec(prop::collection::vec(exchange, 40), 3)
}

/// What happens to a replica.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Phase {
    Sends,
    /// The request is at the API server: a write bound to a version, or a read.
    Arrives {
        sent: u64,
        write: Option<Write>,
        back: Option<u64>,
    },
    /// The answer is at the replica.
    Answered {
        sent: u64,
        answer: Answer,
    },
    /// Nothing has come.
    GivesUp,
}

/// The version that a write is bound to, and the number of holders.
type Write = (String, i32);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Answer {
    /// The new version.
    Wrote(String),
    Conflict,
    Read(Lease),
}

/// The Lease as the API server has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Lease {
    holder: Option<String>,
    renewals: u64,
    transitions: i32,
    version: u64,
}

impl Lease {
    fn answer(&mut self, by: usize, write: Option<Write>) -> Answer {
        let Some((version, transitions)) = write else { return Answer::Read(self.clone()) };
        if version != self.version.to_string() {
            return Answer::Conflict;
        }
        self.version += 1;
        self.renewals += 1;
        self.transitions = transitions;
        self.holder = Some(by.to_string());
        Answer::Wrote(self.version.to_string())
    }

    fn record(self) -> Record {
        Record {
            holder: self.holder,
            renewed: Some(self.renewals.to_string()),
            duration: Some(LEASE),
            transitions: self.transitions,
            version: self.version.to_string(),
        }
    }
}

proptest! {
    #[test]
    fn never_do_two_lead(plan in exchanges()) {
        // An answer is not waited for longer than this many milliseconds.
        const PATIENCE: u64 = 6_000;
        let start = Instant::now();
        let at = |time: u64| start + Duration::from_millis(time);
        let mut lease = Lease { holder: None, renewals: 0, transitions: 0, version: 1 };
        let mut replicas: Vec<_> = plan
            .iter()
            .enumerate()
            .map(|(index, exchanges)| (Candidate::new(index.to_string(), LEASE), exchanges.iter(), None::<Write>))
            .collect();
        let mut queue: BinaryHeap<_> =
            (0..replicas.len()).map(|index| Reverse((0, index, Phase::Sends))).collect();
        let mut led = 0;
        while let Some(Reverse((now, index, phase))) = queue.pop() {
            let mut push = |time: u64, phase: Phase| queue.push(Reverse((time, index, phase)));
            match phase {
                Phase::Sends => {
                    let (candidate, exchanges, take) = &mut replicas[index];
                    let Some(exchange) = exchanges.next() else { continue };
                    if exchange.suspended > 0 {
                        push(now + exchange.suspended, Phase::Sends);
                        continue;
                    }
                    // Who has led and does no more, ends.
                    if candidate.leads_until().is_some_and(|until| at(now) >= until) {
                        continue;
                    }
                    let renews = candidate.to_renew().map(|version| (version.to_owned(), lease.transitions));
                    let write = take.take().or(renews);
                    match exchange.there {
                        Some(there) => {
                            push(now + there, Phase::Arrives { sent: now, write, back: exchange.back });
                        }
                        None => push(now + PATIENCE, Phase::GivesUp),
                    }
                }
                Phase::Arrives { sent, write, back } => {
                    let answer = lease.answer(index, write);
                    match back {
                        Some(back) if now + back <= sent + PATIENCE => {
                            push(now + back, Phase::Answered { sent, answer });
                        }
                        _ => push(now.max(sent + PATIENCE), Phase::GivesUp),
                    }
                }
                Phase::Answered { sent, answer } => {
                    let mut pause = replicas[index].0.pause().as_millis() as u64;
                    match answer {
                        Answer::Wrote(version) => {
                            let others = replicas.iter().enumerate().filter(|(other, (candidate, ..))| {
                                *other != index && candidate.leads_until().is_some_and(|until| at(now) < until)
                            });
                            prop_assert_eq!(others.count(), 0, "{} begins while another leads", index);
                            replicas[index].0.wrote(version, at(sent));
                            led += 1;
                        }
                        // Somebody was quicker: look.
                        Answer::Conflict => {
                            replicas[index].0.conflicted();
                            pause = 0;
                        }
                        Answer::Read(found) => {
                            let (candidate, _, take) = &mut replicas[index];
                            if let Next::Take { version, transitions } = candidate.read(found.record(), at(now)) {
                                *take = Some((version, transitions));
                                pause = 0;
                            }
                        }
                    }
                    push(now + pause, Phase::Sends);
                }
                Phase::GivesUp => push(now, Phase::Sends),
            }
        }
        // It is no proof if nobody ever leads.
        prop_assume!(led > 0);
    }
}
