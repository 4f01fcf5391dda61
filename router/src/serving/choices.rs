//! The choices of one prompt as they grow: events of its worker become pieces of text.

use super::call::Open;
use crate::generation::{Event, FinishReason};
use crate::model::TextTokenizer;
use crate::text::{Delta, OutputText};

/// What an event adds to one choice.
#[derive(PartialEq, Debug)]
pub(super) struct Addition {
    /// Which, of this prompt's, from 0.
    pub choice: u32,
    /// May be empty: tokens need not make text at once.
    pub delta: Delta,
    /// Set when nothing more comes of this choice.
    pub end: Option<FinishReason>,
}

/// The choices of one prompt.
pub(super) struct Choices {
    choices: Vec<Choice>,
    /// Text that each choice begins with.
    echo: Option<String>,
}

struct Choice {
    output: OutputText,
    begun: bool,
    ended: bool,
}

impl Choices {
    /// All that were asked for.
    pub(super) fn new(open: &Open) -> Self {
        let prompt = &open.prepared.prompt;
        let choice = |_| Choice {
            output: OutputText::new(open.prepared.text.clone(), &open.model.tokenizer, &prompt.token_ids),
            begun: false,
            ended: false,
        };
        Self { choices: (0..prompt.choices).map(choice).collect(), echo: open.prepared.echo.clone() }
    }

    /// Takes in what the worker sent. Nothing comes of tokens after the end of their choice: a worker does not know of
    /// stop strings and goes on until its other choices have ended too.
    pub(super) fn take(&mut self, tokenizer: &TextTokenizer, event: Event) -> Option<Addition> {
        let (number, mut delta, end) = match event {
            Event::Tokens { choice: number, tokens } => {
                let choice = self.open(number)?;
                let mut delta = Delta::default();
                for token in &tokens {
                    delta.append(choice.output.push(tokenizer, token));
                    if delta.stopped {
                        break;
                    }
                }
                let end = delta.stopped.then_some(FinishReason::Stop);
                (number, delta, end)
            }
            Event::Finished { choice: number, reason } => {
                let rest = self.open(number)?.output.finish(tokenizer);
                let reason = if rest.stopped { FinishReason::Stop } else { reason };
                (number, rest, Some(reason))
            }
            // Errors by the contract of `Upstream::next`.
            Event::Started(_) | Event::Failed(_) => return None,
        };
        let choice = self.choices.get_mut(number as usize)?;
        choice.ended = end.is_some();
        if !std::mem::replace(&mut choice.begun, true)
            && let Some(echo) = &self.echo
        {
            delta.text.insert_str(0, echo);
        }
        Some(Addition { choice: number, delta, end })
    }

    fn open(&mut self, number: u32) -> Option<&mut Choice> {
        self.choices.get_mut(number as usize).filter(|choice| !choice.ended)
    }

    /// How many there are.
    pub(super) fn len(&self) -> u32 {
        self.choices.len() as u32
    }

    /// Those that have not ended.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.choices).filter(|(_, choice)| !choice.ended).map(|(number, _)| number)
    }

    /// Nothing more comes.
    pub(super) fn all_ended(&self) -> bool {
        self.choices.iter().all(|choice| choice.ended)
    }

    /// Tokens of all of them, as far as they belong to the answer.
    pub(super) fn tokens(&self) -> u32 {
        self.choices.iter().map(|choice| choice.output.tokens()).fold(0, u32::saturating_add)
    }
}
