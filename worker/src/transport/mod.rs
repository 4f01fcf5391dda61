//! How KV gets from one worker to another. So far by TCP: [`tcp`] pushes and receives, [`landing`] is the only place
//! that writes what was received. Who may push says [`token`], where a worker connects to [`reach`].

pub mod landing;
pub mod peers;
pub mod queue;
pub mod reach;
pub mod speed;
pub mod stages;
pub mod tcp;
pub mod token;
