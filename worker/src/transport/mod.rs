//! How KV gets from one worker to another. So far by TCP: [`tcp`] pushes and receives, [`landing`] is the only place
//! that writes what was received.

pub mod landing;
pub mod peers;
pub mod queue;
pub mod speed;
pub mod stages;
pub mod tcp;
