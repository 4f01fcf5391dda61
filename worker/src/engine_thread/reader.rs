//! What comes out for one request: a bounded channel whose two ends together say when the reader is behind.
//!
//! The engine thread never waits for a reader. When a reader leaves as much unread as it may, the thread pauses its
//! request ([`disagg_engine::Engine::pause`]), and the reader wakes the thread when it has taken most of that.

use disagg_engine::Request;
use tokio::sync::mpsc;

use super::{Command, SequenceEvent};

/// Tokens of each choice that may wait to be read before the request is paused: few enough that what is computed for
/// nobody is little, and enough that a reader which comes once in a while finds work done.
const UNREAD_TOKENS_MAX: usize = 64;

/// Tokens of each choice that wait when a paused request goes on: few, since others may have taken its blocks, and what
/// is computed again for it should bring many tokens.
const UNREAD_TOKENS_LOW: usize = 16;

/// Events of each choice that a pause does not stop: the tokens of two steps, and an end.
const AFTER_PAUSE_MAX: usize = 8;

/// The engine thread's end.
#[derive(Debug)]
pub(super) struct Writer {
    events: mpsc::Sender<SequenceEvent>,
    /// Unread events at which the request is paused,
    pause_at: usize,
    /// and at which it goes on.
    resume_at: usize,
}

/// Why an event was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NotTaken {
    /// The reader is gone.
    Gone,
    /// There is no room: more came than a pause can leave.
    Full,
}

/// The reader's end. Dropping it cancels the request at its next event.
#[derive(Debug)]
pub struct SequenceEvents {
    events: mpsc::Receiver<SequenceEvent>,
    /// Wakes the engine thread when this many events are left; `None` if no engine is behind them.
    wake: Option<(mpsc::WeakSender<Command>, usize)>,
}

/// Both ends of a request's channel, with the way to the engine thread.
pub(super) fn channel(request: &Request, commands: mpsc::WeakSender<Command>) -> (Writer, SequenceEvents) {
    let choices = request.choices.max(1) as usize;
    let pause_at = choices * UNREAD_TOKENS_MAX;
    let resume_at = choices * UNREAD_TOKENS_LOW;
    let (sender, receiver) = mpsc::channel(pause_at + choices * AFTER_PAUSE_MAX);
    let writer = Writer { events: sender, pause_at, resume_at };
    (writer, SequenceEvents { events: receiver, wake: Some((commands, resume_at)) })
}

impl Writer {
    /// Never waits.
    pub(super) fn send(&self, event: SequenceEvent) -> Result<(), NotTaken> {
        self.events.try_send(event).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotTaken::Full,
            mpsc::error::TrySendError::Closed(_) => NotTaken::Gone,
        })
    }

    /// As much waits to be read as may.
    pub(super) fn is_behind(&self) -> bool {
        self.unread() >= self.pause_at
    }

    /// A reader that was behind has read most of that.
    pub(super) fn has_caught_up(&self) -> bool {
        self.unread() <= self.resume_at
    }

    fn unread(&self) -> usize {
        self.events.max_capacity() - self.events.capacity()
    }
}

impl SequenceEvents {
    /// Events that are there already, from no engine.
    pub(crate) fn ready(events: mpsc::Receiver<SequenceEvent>) -> Self {
        Self { events, wake: None }
    }

    /// The next event; `None` after the last. Cancel safe.
    pub async fn recv(&mut self) -> Option<SequenceEvent> {
        let event = self.events.recv().await?;
        if let Some((commands, resume_at)) = &self.wake
            && self.events.len() == *resume_at
            && let Some(commands) = commands.upgrade()
        {
            // A request is paused with more unread than this, and nothing is added while it is paused but for what
            // was under way: whoever reads on comes by this number. If there is no room for the command, the thread
            // has others to handle, and looks after paused requests when it has.
            let _ = commands.try_send(Command::CaughtUp);
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use disagg_engine::{FinishReason, SamplingParams, StopRules};

    use super::*;

    fn request(choices: u32) -> Request {
        let stop = StopRules {
            max_tokens: 1000,
            min_tokens: 0,
            eos_token_ids: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
        };
        let sampling = SamplingParams::greedy();
        Request { prompt: vec![1], cache_salt: String::new(), sampling, stop, choices }
    }

    fn event() -> SequenceEvent {
        SequenceEvent::Finished { choice: 0, reason: FinishReason::Length, message: None }
    }

    /// However sends and reads alternate, a reader that reads on tells of it when it was behind.
    #[tokio::test]
    async fn a_reader_that_was_behind_wakes_the_engine_once_it_has_caught_up() {
        for choices in [1, 3] {
            let (commands, mut inbox) = mpsc::channel(4);
            let (writer, mut events) = channel(&request(choices), commands.downgrade());
            let mut sent = 0;
            while !writer.is_behind() {
                writer.send(event()).expect("there is room");
                sent += 1;
            }
            assert_eq!(sent, UNREAD_TOKENS_MAX * choices as usize);
            // What was under way when it was paused.
            for _ in 0..AFTER_PAUSE_MAX * choices as usize {
                writer.send(event()).expect("there is room for it");
                sent += 1;
            }
            assert_eq!(writer.send(event()), Err(NotTaken::Full));
            while !writer.has_caught_up() {
                assert!(inbox.try_recv().is_err(), "too early");
                events.recv().await.expect("there are more");
                sent -= 1;
            }
            assert_eq!(sent, UNREAD_TOKENS_LOW * choices as usize);
            assert!(matches!(inbox.try_recv(), Ok(Command::CaughtUp)));
            assert!(!writer.is_behind());
            drop(events);
            assert_eq!(writer.send(event()), Err(NotTaken::Gone));
        }
    }

    #[tokio::test]
    async fn a_reader_does_not_keep_the_engine_thread_alive() {
        let (commands, mut inbox) = mpsc::channel::<Command>(4);
        let (writer, mut events) = channel(&request(1), commands.downgrade());
        drop(commands);
        assert!(inbox.recv().await.is_none());
        writer.send(event()).expect("there is room");
        assert_eq!(events.recv().await, Some(event()));
    }
}
