//! The index against naive models.
