//! Reading a model: its configuration, its weights, and the card that the router serves it from.
