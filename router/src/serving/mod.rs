//! From a parsed request to its answer: waiting for a worker, placement, attempts, and the two ways to answer.

mod call;
mod choices;
mod outbox;
mod placement_header;
mod stream;
mod whole;

pub(crate) use call::Call;
pub(crate) use placement_header::placement_header;
pub(crate) use stream::{AnswerLimits, Part, stream};
pub(crate) use whole::{Whole, deliver, whole};
