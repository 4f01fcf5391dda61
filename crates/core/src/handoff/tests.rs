//! Tests of both sides.
