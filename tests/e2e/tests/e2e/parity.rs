//! Greedy tokens.
