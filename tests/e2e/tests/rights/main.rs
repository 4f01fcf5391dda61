//! The end of a run, after the other tests have used the operator that the chart installed: the chart is upgraded; the
//! API server's audit log says whether every right that the ServiceAccounts of a user have was used, and whether anything
//! else was asked for; the chart is uninstalled.

#![allow(clippy::print_stderr)]

mod audit;
mod chart;
mod rules;
mod seldom;

use std::time::Duration;

use disagg_e2e::cluster::{self, ClusterError, Namespace};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, Subject};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use audit::Request;

/// Namespace of the release; its ServiceAccounts are the operator's.
const SYSTEM: &str = "disagg-system";

/// Namespace of this test's deployment.
const RIGHTS: &str = "e2e-rights";

/// Longest wait for a deployment to be as its spec asks.
const CONVERGE: Duration = Duration::from_mins(2);

/// A ServiceAccount, and what it may do.
struct Account {
    namespace: String,
    name: String,
    rules: Vec<PolicyRule>,
}

impl Account {
    fn is_of_the_operator(&self) -> bool {
        self.namespace == SYSTEM
    }

    /// Whether a request counts for this account. The accounts of all deployments have the same rights, each on its own
    /// objects, so what any of them used was used.
    fn did(&self, request: &Request) -> bool {
        if self.is_of_the_operator() {
            return request.account == format!("system:serviceaccount:{SYSTEM}:{}", self.name);
        }
        let role = self.name.rsplit('-').next().expect("a last word");
        request.account.starts_with("system:serviceaccount:e2e-")
            && request.account.ends_with(&format!("-{role}"))
    }
}

#[tokio::test]
async fn the_chart_is_upgraded_its_rights_were_used_and_it_is_uninstalled() {
    let cluster = cluster::from_environment().unwrap_or_else(|error| panic!("no cluster: {error}"));
    // The rights of a deployment's own accounts are there as long as it is.
    let namespace = Namespace::create(&*cluster, RIGHTS).await;
    let since = chart::installed_at(&namespace).await;
    let spec =
        json!({"model": {"source": {"random": {}}}, "prefill": {"replicas": 1}, "decode": {"replicas": 1}});
    namespace.apply(chart::NAME, &spec).await;
    namespace.condition(chart::NAME, "Ready", "True", CONVERGE).await;
    let other = Namespace::create(&*cluster, "e2e-seldom").await;
    seldom::names_are_taken(&other).await;
    seldom::pod_monitors_come_and_go(&*cluster, &other).await;
    other.delete().await;
    chart::upgraded(&*cluster, &namespace).await;
    match cluster.audit_log() {
        Ok(log) => check(&namespace, &audit::parse(&log), &since).await,
        Err(error @ ClusterError::NotOffered { .. }) => {
            eprintln!("SKIPPED: what the audit log says: {error}");
        }
        Err(error) => panic!("{error}"),
    }
    chart::uninstalled(&*cluster, &namespace).await;
}

/// Every right was used by some request since then, and none was refused.
async fn check(namespace: &Namespace, log: &[Request], since: &str) {
    let requests: Vec<&Request> = log.iter().filter(|request| request.at.as_str() >= since).collect();
    let mut problems = Vec::new();
    let accounts = accounts(namespace.client()).await;
    let of_deployments = accounts.iter().filter(|account| !account.is_of_the_operator());
    let granted: Vec<PolicyRule> = of_deployments.flat_map(|account| account.rules.clone()).collect();
    for account in &accounts {
        let own: Vec<&Request> = requests.iter().copied().filter(|request| account.did(request)).collect();
        let (place, name) = (&account.namespace, &account.name);
        eprintln!("{place}/{name}: {} rules, {} requests", account.rules.len(), own.len());
        let unused =
            rules::unused(&account.rules, &own, if account.is_of_the_operator() { &granted } else { &[] });
        problems.extend(unused.into_iter().map(|right| format!("{name}: never used: {right}")));
    }
    let ours = |request: &&&Request| {
        let account = &request.account;
        account.starts_with(&format!("system:serviceaccount:{SYSTEM}:"))
            || account.starts_with("system:serviceaccount:e2e-")
    };
    let refused = requests.iter().filter(ours).filter(|request| request.refused);
    problems.extend(refused.map(|request| format!("{}: refused: {}", request.account, request.what())));
    problems.sort();
    problems.dedup();
    assert!(problems.is_empty(), "{problems:#?}");
}

/// The accounts of the operator and of the deployment, with the rules that are bound to them.
async fn accounts(client: &kube::Client) -> Vec<Account> {
    let all = ListParams::default();
    let mut bound: Vec<(Subject, Vec<PolicyRule>)> = Vec::new();
    for binding in Api::<ClusterRoleBinding>::all(client.clone()).list(&all).await.expect("bindings") {
        let role =
            Api::<ClusterRole>::all(client.clone()).get_opt(&binding.role_ref.name).await.expect("a role");
        let rules = role.and_then(|role| role.rules).unwrap_or_default();
        bound
            .extend(binding.subjects.unwrap_or_default().into_iter().map(|subject| (subject, rules.clone())));
    }
    for binding in Api::<RoleBinding>::all(client.clone()).list(&all).await.expect("bindings") {
        let namespace = binding.namespace().expect("a namespace");
        let rules = if binding.role_ref.kind == "Role" {
            let role =
                Api::<Role>::namespaced(client.clone(), &namespace).get_opt(&binding.role_ref.name).await;
            role.expect("a role").and_then(|role| role.rules)
        } else {
            let role = Api::<ClusterRole>::all(client.clone()).get_opt(&binding.role_ref.name).await;
            role.expect("a role").and_then(|role| role.rules)
        };
        let rules = rules.unwrap_or_default();
        bound
            .extend(binding.subjects.unwrap_or_default().into_iter().map(|subject| (subject, rules.clone())));
    }
    let mut accounts: Vec<Account> = Vec::new();
    for (subject, rules) in bound {
        let namespace = subject.namespace.unwrap_or_default();
        if subject.kind != "ServiceAccount" || (namespace != SYSTEM && namespace != RIGHTS) {
            continue;
        }
        let (name, mut rules) = (subject.name, rules);
        if namespace != SYSTEM {
            // See `Account::did`: the others' objects have other names.
            for rule in &mut rules {
                rule.resource_names = None;
            }
        }
        let same = |account: &&mut Account| account.namespace == namespace && account.name == name;
        match accounts.iter_mut().find(same) {
            Some(account) => account.rules.extend(rules),
            None => accounts.push(Account { namespace, name, rules }),
        }
    }
    assert!(accounts.iter().any(Account::is_of_the_operator), "the operator is installed");
    assert!(!accounts.iter().all(Account::is_of_the_operator), "the deployment has rights of its own");
    accounts
}
