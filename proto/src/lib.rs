//! Wire contract of disagg: the types generated from `proto/disagg/v1/*.proto`, and every bound of the contract, once
//! ([`limits`]). One kind of bound is enforced here: how many entries a message may hold, since after decoding it is too
//! late ([`bounds`]). All others are enforced by the crates that receive the messages.

pub mod bounds;
pub mod codec;
pub mod limits;

/// Version 1 of the contract.
pub mod v1 {
    #![allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, rust_2018_idioms)]
    tonic::include_proto!("disagg.v1");
}

/// Metadata of an UNAVAILABLE answer to `Generate` or `Prefill`: the worker takes no new work (it drains, or its engine
/// has failed) and has begun nothing. The caller may ask any number of others.
pub const REFUSED_METADATA: &str = "disagg-refused";
