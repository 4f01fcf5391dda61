//! What computes: implementations of [`disagg_engine::Backend`].

mod batch;
pub mod candle;
mod pool;
pub mod sim;
