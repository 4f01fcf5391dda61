//! `kubectl disagg check`: what is wrong, and what to do about it.
//!
//! Three steps: `gather` reads everything that is needed into a `Snapshot`; `findings`, with `operators`, `network`,
//! `conditions`, `pods` and `routers`, notices what is wrong in it; `fold` tells causes from what follows from them. The
//! last two are pure. What could not be read is a finding of its own and keeps nothing else from being judged.

mod conditions;
mod findings;
mod fold;
mod gather;
mod network;
mod operators;
mod pods;
mod routers;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;

use super::cluster::Cluster;
use crate::console;

/// Find out what is wrong with the cluster or a DisaggDeployment, and what to do about it
///
/// Looks at the resource definition, the operators, conditions, pods and their events, the settings ConfigMap, NetworkPolicies,
/// and what the routers say of workers and settings. Each trouble is told once, under what it is about, the cause before
/// what follows from it. The exit code is 1 when there is an error, and 0 when there are at most warnings.
#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// Name of the DisaggDeployment [default: every one of the namespace]
    name: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Severity {
    /// It does not work, or not as asked.
    Error,
    /// It works, and may not for long or not well.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Finding {
    severity: Severity,
    /// `kind/name`, as kubectl takes it.
    subject: String,
    /// Others of which the same is to be said.
    more: Vec<String>,
    /// What is wrong, in one line.
    what: String,
    /// What to do, in one line.
    advice: String,
    /// What else is wrong because of it, each in a few words.
    hence: Vec<String>,
}

impl Finding {
    fn error(subject: impl Into<String>, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Severity::Error, subject.into(), &what.into(), &advice.into())
    }

    fn warning(subject: impl Into<String>, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Severity::Warning, subject.into(), &what.into(), &advice.into())
    }

    fn new(severity: Severity, subject: String, what: &str, advice: &str) -> Self {
        // Messages of Kubernetes may have several lines.
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let (what, advice) = (one_line(what), one_line(advice));
        Self { severity, subject, more: Vec::new(), what, advice, hence: Vec::new() }
    }
}

/// What is wrong with the cluster, or with one deployment; the cause that matters most comes first.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Group {
    /// `the cluster`, or `dd/name`.
    of: String,
    findings: Vec<Finding>,
}

pub(super) async fn run(cluster: &Cluster, args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let snapshot = Box::pin(gather::gather(cluster, args.name.as_deref())).await?;
    let groups = findings::findings(&snapshot);
    console::print(&report(&groups, &snapshot.looked_at()));
    let mut all = groups.iter().flat_map(|group| &group.findings);
    let failed = all.any(|finding| finding.severity == Severity::Error);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The findings of each group, the worst group first, and what was looked at.
fn report(groups: &[Group], looked_at: &str) -> String {
    let mut groups: Vec<&Group> = groups.iter().filter(|group| !group.findings.is_empty()).collect();
    groups.sort_by_key(|group| group.findings.iter().map(|finding| finding.severity).min());
    let mut text = String::new();
    for Group { of, findings } in &groups {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{of}");
        for Finding { severity, subject, more, what, advice, hence } in findings {
            let label = match severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            let others = match more.len() {
                0 => String::new(),
                _ => format!(" (also {})", more.join(", ")),
            };
            let _ = writeln!(text, "  {label}: {subject}{others}: {what}\n    to do: {advice}");
            if !hence.is_empty() {
                let _ = writeln!(text, "    hence: {}", hence.join("; "));
            }
        }
    }
    let _ = match groups.len() {
        0 => writeln!(text, "Nothing is wrong. Looked at {looked_at}."),
        _ => writeln!(text, "Looked at {looked_at}."),
    };
    text
}
