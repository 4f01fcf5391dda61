//! Wire contract of disagg, generated from `proto/disagg/v1/*.proto`. One rule is enforced here: how many entries a
//! message may hold, since after decoding it is too late ([`bounds`]). All other limits are stated in the `.proto`
//! comments and enforced by the crates that receive the messages, which convert them at once into their own types.

pub mod bounds;
pub mod codec;
pub mod limits;

/// Version 1 of the contract.
pub mod v1 {
    #![allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, rust_2018_idioms)]
    tonic::include_proto!("disagg.v1");
}

/// Largest gRPC message either side accepts, in bytes: a part of a model card and its framing, or a prompt of 10^6 tokens.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// Largest payload of one KV chunk or model card part, in bytes.
pub const MAX_CHUNK_BYTES: usize = 1024 * 1024;

/// Metadata of an UNAVAILABLE answer to `Generate` or `Prefill`: the worker takes no new work (it drains, or its engine
/// has failed) and has begun nothing. The caller may ask any number of others.
pub const REFUSED_METADATA: &str = "disagg-refused";
