//! A complete small model made on the spot.
