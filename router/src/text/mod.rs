//! From token ids to text, as they come.

mod detokenizer;
mod output;
mod stop;

pub(crate) use detokenizer::{Decode, Detokenizer};
pub(crate) use output::{Delta, OutputText, TextRules, TokenText};
pub(crate) use stop::StopMatcher;
