//! `kubectl disagg check`: what is wrong, and what to do about it.
//!
//! Two steps: `gather` reads everything that is needed into a `Snapshot`, and `findings` judges it, purely. What could
//! not be read is a finding of its own and keeps nothing else from being judged.

mod findings;
mod gather;
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
/// Looks at the resource definition, the operator, conditions, pods and their events, the settings ConfigMap, and what
/// the routers say of workers and settings. The exit code is 1 when there is an error, and 0 when there are at most
/// warnings.
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
    /// What is wrong, in one line.
    what: String,
    /// What to do, in one line.
    advice: String,
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
        Self { severity, subject, what: one_line(what), advice: one_line(advice) }
    }
}

pub(super) async fn run(cluster: &Cluster, args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let snapshot = Box::pin(gather::gather(cluster, args.name.as_deref())).await?;
    let findings = findings::findings(&snapshot);
    console::print(&report(&findings, &snapshot.looked_at()));
    let failed = findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The findings, the worst first, and what was looked at.
fn report(findings: &[Finding], looked_at: &str) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.severity);
    let mut text = String::new();
    for finding in &sorted {
        let label = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{label}: {}: {}\n  to do: {}", finding.subject, finding.what, finding.advice);
    }
    let _ = match sorted.len() {
        0 => writeln!(text, "Nothing is wrong. Looked at {looked_at}."),
        _ => writeln!(text, "Looked at {looked_at}."),
    };
    text
}

#[cfg(test)]
mod report_tests {
    use super::*;

    #[test]
    fn errors_come_first_and_each_says_what_to_do() {
        let findings = [
            Finding::warning("pod/a", "odd", "look"),
            Finding::error("pod/b", "broken\n  in two lines", "mend"),
        ];
        let expected = "\
error: pod/b: broken in two lines
  to do: mend
warning: pod/a: odd
  to do: look
Looked at 1 pod.
";
        assert_eq!(report(&findings, "1 pod"), expected);
        assert_eq!(report(&[], "1 pod"), "Nothing is wrong. Looked at 1 pod.\n");
    }
}
