//! What computes: implementations of [`disagg_engine::Backend`].

pub mod candle;
