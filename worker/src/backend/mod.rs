//! What computes: implementations of [`disagg_engine::Backend`].
