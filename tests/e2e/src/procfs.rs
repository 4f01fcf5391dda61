//! What `/proc` says about processes that are not our children.

use std::fs;
use std::time::Duration;

/// A process as `/proc/<pid>/stat` tells it. The start time tells it from a later process with the same id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProcessInfo {
    /// Process id.
    pub pid: u32,
    /// Parent's id.
    pub parent: u32,
    /// `R`, `S`, `Z`, ...
    pub state: char,
    /// Ticks of 10 ms after boot.
    pub start_ticks: u64,
    /// Arguments.
    pub arguments: Vec<String>,
}

/// The process, if there is one.
pub fn process(pid: u32) -> Option<ProcessInfo> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields begin after the last one.
    let fields: Vec<_> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    Some(ProcessInfo {
        pid,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
        arguments: arguments
            .split(|byte| *byte == 0)
            .filter(|argument| !argument.is_empty())
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect(),
    })
}

/// Resident memory of a process, in bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("/proc/<pid>/status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kib * 1024
}

/// How many files a process has open, connections included.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("/proc/<pid>/fd").count()
}

/// CPU time that a process has used, user and system, in clock ticks of 10 ms.
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("/proc/<pid>/stat");
    let fields: Vec<_> = stat[stat.rfind(')').expect("a name") + 1..].split_whitespace().collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

/// Children of `parent` that run.
pub fn children(parent: u32) -> Vec<ProcessInfo> {
    let entries = fs::read_dir("/proc").expect("/proc");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(process).filter(|info| info.parent == parent && info.state != 'Z').collect()
}

impl ProcessInfo {
    /// Whether this very process still runs. A zombie that nobody has reaped does not.
    pub fn runs(&self) -> bool {
        process(self.pid).is_some_and(|now| now.start_ticks == self.start_ticks && now.state != 'Z')
    }

    /// How long ago it started, to 10 ms.
    pub fn age(&self) -> Duration {
        let uptime = fs::read_to_string("/proc/uptime").expect("/proc/uptime");
        let seconds = uptime.split_whitespace().next().and_then(|text| text.parse::<f64>().ok());
        let now_ms = (seconds.expect("seconds since boot") * 1e3) as u64;
        Duration::from_millis(now_ms.saturating_sub(self.start_ticks * 10))
    }

    /// Whether its arguments have this one, by itself or as the value of a flag: `--flag=argument`.
    pub fn has_argument(&self, argument: &str) -> bool {
        let is_value = |a: &str| {
            a.strip_prefix("--")
                .and_then(|flag| flag.split_once('='))
                .is_some_and(|(_, value)| value == argument)
        };
        self.arguments.iter().any(|a| a == argument || is_value(a))
    }
}

/// `kill -9` of any process.
pub fn kill_9(pid: u32) {
    let line = format!("kill -9 {pid}");
    let status = std::process::Command::new("sh").args(["-c", &line]).status().expect("sh");
    assert!(status.success(), "{line}: {status}");
}
