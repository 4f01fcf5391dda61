//! End-to-end tests on a Kubernetes cluster with real pods. `make e2e` starts a cluster, builds the images and runs
//! this; `CLUSTER=local|kind|external` chooses the cluster.
//!
//! Each test has a namespace of its own, so they run side by side.

// A test that is skipped says so where people look.
#![allow(clippy::print_stderr)]

mod admission;
mod install;
mod model_change;
mod neighbour;
mod plugin;
mod removal;
mod rollout;
mod serving;
mod session;
mod settings;
mod sidecar;
mod smoke;
mod truth;
