//! How KV gets from one worker to another. So far by gRPC: [`grpc`] pushes and receives, [`landing`] is the only
//! place that writes what was received.

pub mod grpc;
pub mod landing;
pub mod peers;
pub mod queue;
pub mod speed;
