//! P's side.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::handoff::*;

const LEASE: Duration = Duration::from_secs(2);

/// P's machine with a driver that checks what it is told to do.
struct Driver {
    machine: PrefillLease,
    armed: Option<(SourceDeadline, u64)>,
    /// The engine has not said that it is done.
    computing: bool,
    stopped: bool,
    completed: usize,
    freed: usize,
    drained_sent: usize,
    stuck: usize,
    /// No push is under way and none can begin.
    quiet: bool,
}

impl Driver {
    fn start() -> Self {
        let (machine, actions) = PrefillLease::start(LEASE, &Timeouts::default());
        let mut driver = Self {
            machine,
            armed: None,
            computing: true,
            stopped: false,
            completed: 0,
            freed: 0,
            drained_sent: 0,
            stuck: 0,
            quiet: false,
        };
        driver.carry_out(&actions);
        driver
    }

    fn tell(&mut self, fact: SourceFact) -> Vec<SourceAction> {
        match fact {
            SourceFact::Computed => self.computing = false,
            SourceFact::PushDrained => self.quiet = true,
            SourceFact::Heartbeat
            | SourceFact::PrefillFailed
            | SourceFact::Cancelled
            | SourceFact::PeerLost
            | SourceFact::DeadlinePassed { .. } => {}
        }
        let actions = self.machine.on(fact);
        self.carry_out(&actions);
        actions
    }

    fn fire(&mut self) {
        let (deadline, serial) = self.armed.expect("something is armed");
        self.tell(SourceFact::DeadlinePassed { deadline, serial });
    }

    fn carry_out(&mut self, actions: &[SourceAction]) {
        for action in actions {
            match *action {
                SourceAction::ArmDeadline { deadline, serial, after } => {
                    assert!(after > Duration::ZERO);
                    self.armed = Some((deadline, serial));
                }
                SourceAction::SendCompleted => {
                    assert!(!self.computing && !self.stopped);
                    self.completed += 1;
                }
                SourceAction::StopPushes => {
                    assert!(!self.stopped);
                    self.stopped = true;
                }
                SourceAction::FreeSource => {
                    assert!(self.quiet, "freed while a push may read");
                    self.freed += 1;
                }
                SourceAction::SendDrained => {
                    assert!(self.quiet);
                    self.drained_sent += 1;
                }
                SourceAction::ReportStuck => self.stuck += 1,
            }
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.machine.state(), PrefillLeaseState::Done | PrefillLeaseState::Stuck)
    }
}

fn fact() -> impl Strategy<Value = SourceFact> {
    let deadline = prop_oneof![Just(SourceDeadline::Lease), Just(SourceDeadline::Drain)];
    prop_oneof![
        3 => Just(SourceFact::Heartbeat),
        2 => Just(SourceFact::Computed),
        1 => Just(SourceFact::PrefillFailed),
        2 => Just(SourceFact::PushDrained),
        1 => Just(SourceFact::Cancelled),
        1 => Just(SourceFact::PeerLost),
        2 => (deadline, 0_u64..6)
            .prop_map(|(deadline, serial)| SourceFact::DeadlinePassed { deadline, serial }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_facts_free_the_source_once_and_only_when_quiet(facts in vec(fact(), 0..30)) {
        let mut driver = Driver::start();
        for fact in facts {
            driver.tell(fact);
        }
        for _ in 0..3 {
            if !driver.is_over() {
                driver.fire();
            }
        }
        prop_assert!(driver.is_over(), "timers alone do not end {:?}", driver.machine);
        prop_assert_eq!(driver.freed + driver.stuck, 1);
        prop_assert_eq!(driver.freed, driver.drained_sent);
        prop_assert!(driver.completed <= 1);
    }
}

#[test]
fn the_usual_course() {
    let mut driver = Driver::start();
    assert_eq!(driver.armed, Some((SourceDeadline::Lease, 1)));
    assert_eq!(
        driver.tell(SourceFact::Heartbeat),
        [SourceAction::ArmDeadline { deadline: SourceDeadline::Lease, serial: 2, after: LEASE }]
    );
    assert_eq!(driver.tell(SourceFact::Computed), [SourceAction::SendCompleted]);
    assert_eq!(driver.tell(SourceFact::PushDrained), [SourceAction::FreeSource, SourceAction::SendDrained]);
    assert_eq!(driver.machine.state(), PrefillLeaseState::Done);
}

#[test]
fn a_lease_that_runs_out_stops_the_pushes_and_frees_when_they_are_over() {
    for computed in [false, true] {
        let mut driver = Driver::start();
        if computed {
            driver.tell(SourceFact::Computed);
        }
        driver.fire();
        assert!(driver.stopped);
        assert_eq!(driver.freed, 0);
        assert_eq!(driver.tell(SourceFact::Computed), []);
        driver.tell(SourceFact::PushDrained);
        assert_eq!(driver.freed, 1);
    }
}

#[test]
fn the_transport_may_be_heard_before_the_engine() {
    let mut driver = Driver::start();
    assert_eq!(driver.tell(SourceFact::PushDrained), []);
    assert_eq!(
        driver.tell(SourceFact::Computed),
        [SourceAction::SendCompleted, SourceAction::FreeSource, SourceAction::SendDrained]
    );
}

#[test]
fn a_timer_that_was_replaced_does_nothing() {
    let mut driver = Driver::start();
    driver.tell(SourceFact::Heartbeat);
    let late = SourceFact::DeadlinePassed { deadline: SourceDeadline::Lease, serial: 1 };
    assert_eq!(driver.tell(late), []);
    let other = SourceFact::DeadlinePassed { deadline: SourceDeadline::Drain, serial: 2 };
    assert_eq!(driver.tell(other), []);
    assert_eq!(driver.machine.state(), PrefillLeaseState::Prefilling);
}

#[test]
fn a_push_that_never_ends_keeps_its_blocks_for_good() {
    let mut driver = Driver::start();
    driver.tell(SourceFact::Cancelled);
    driver.fire();
    assert_eq!(driver.machine.state(), PrefillLeaseState::Stuck);
    assert_eq!(driver.tell(SourceFact::PushDrained), []);
    assert_eq!(driver.freed, 0);
}
