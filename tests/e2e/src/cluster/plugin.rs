//! `kubectl disagg`, as kubectl itself finds and runs it.

use std::os::unix::fs::symlink;
use std::process::Output;

use super::Namespace;
use crate::process::disagg;

/// kubectl with the plugin on its PATH, in one namespace.
pub struct Plugin<'a> {
    namespace: &'a Namespace,
    folder: tempfile::TempDir,
}

impl<'a> Plugin<'a> {
    /// For this namespace.
    pub fn new(namespace: &'a Namespace) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        symlink(disagg(), folder.path().join("kubectl-disagg")).expect("a link to the executable");
        Self { namespace, folder }
    }

    /// `kubectl disagg …`.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let before = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.folder.path().to_owned()).chain(std::env::split_paths(&before));
        let path = std::env::join_paths(folders).expect("a PATH");
        let mut command = self.namespace.kubectl_plugin_command("disagg");
        command.args(arguments).env("PATH", path).output().expect("kubectl")
    }

    /// What it prints when it succeeds.
    pub fn prints(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "kubectl disagg {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What it prints when it finds something wrong.
    pub fn complains(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "kubectl disagg {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// What `kubectl disagg check` says of one deployment: its findings, each with what stands below it, in order.
    pub fn findings(&self, deployment: &str) -> Vec<String> {
        let printed = String::from_utf8_lossy(&self.run(&["check", deployment]).stdout).into_owned();
        let head = format!("dd/{deployment}");
        let group = printed.lines().skip_while(|line| *line != head).skip(1);
        let mut findings: Vec<String> = Vec::new();
        for line in group.take_while(|line| line.starts_with(' ')) {
            match findings.last_mut() {
                Some(last) if line.starts_with("    ") => {
                    last.push('\n');
                    last.push_str(line.trim());
                }
                _ => findings.push(line.trim().to_owned()),
            }
        }
        findings
    }
}
