//! An answer on its way to its client, streamed or not: a bounded channel that the client's connection empties, and the
//! memory of every byte in it until that byte is written.
//!
//! A client that takes nothing for the reader's timeout is cut off: what waits for it is dropped, and its connection
//! ends in an error as soon as it asks for more. What the connection itself has taken by then stays counted until the
//! listener's own timeout for writes ends it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, error::SendTimeoutError};
use tokio::time::timeout;

use crate::budget::Held;

/// Pieces between an answer and the client's connection.
const PIECES_MAX: usize = 16;

/// Why an answer does not reach its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unread {
    /// The client went away.
    Gone,
    /// The client stopped reading.
    Stopped,
}

/// Where an answer is put.
pub(super) struct Outbox {
    sender: mpsc::Sender<Bytes>,
    shared: Arc<Shared>,
    reader_timeout: Duration,
}

/// What the two ends share.
struct Shared {
    /// What waits to be taken; taken away from a client that does not read.
    waiting: Mutex<Option<mpsc::Receiver<Bytes>>>,
    /// The answer was put in to its end.
    complete: AtomicBool,
    /// The client went away while something waited for it.
    gone: AtomicBool,
    /// Pieces that are not written yet, here and in the connection.
    unwritten: AtomicUsize,
    /// One more is written, or dropped.
    written: Notify,
}

/// A piece of an answer, with the memory that it takes.
struct Piece {
    bytes: Bytes,
    shared: Arc<Shared>,
    _held: Arc<Held>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.shared.unwritten.fetch_sub(1, Ordering::AcqRel);
        self.shared.written.notify_one();
    }
}

impl Outbox {
    /// A body, and where to put what it is to say.
    pub(super) fn new(reader_timeout: Duration) -> (Self, Body) {
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Some(receiver)),
            complete: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            unwritten: AtomicUsize::new(0),
            written: Notify::new(),
        });
        let body = Body::from_stream(Pieces { shared: Arc::clone(&shared), ended: false });
        (Self { sender, shared, reader_timeout }, body)
    }

    /// Puts a piece in, waiting for room while the client takes some. `held` is its memory, given back when it is
    /// written; pieces of one allocation share it.
    pub(super) async fn put(&self, bytes: impl Into<Bytes>, held: Arc<Held>) -> Result<(), Unread> {
        self.shared.unwritten.fetch_add(1, Ordering::AcqRel);
        let piece = Piece { bytes: bytes.into(), shared: Arc::clone(&self.shared), _held: held };
        match self.sender.send_timeout(Bytes::from_owner(piece), self.reader_timeout).await {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Closed(_)) => Err(Unread::Gone),
            Err(SendTimeoutError::Timeout(_)) => Err(self.cut()),
        }
    }

    /// Resolves when the client goes away. Stands in the way of [`Self::finish`]: the body ends when it is dropped.
    pub(super) fn closes(&self) -> impl Future<Output = ()> + use<> {
        let sender = self.sender.clone();
        async move { sender.closed().await }
    }

    /// Nothing follows. Waits until all of it is written, as long as the client goes on to read.
    pub(super) async fn finish(self) -> Result<(), Unread> {
        let Self { sender, shared, reader_timeout } = self;
        shared.complete.store(true, Ordering::Release);
        drop(sender);
        while shared.unwritten.load(Ordering::Acquire) > 0 {
            if timeout(reader_timeout, shared.written.notified()).await.is_err() {
                shared.complete.store(false, Ordering::Release);
                drop(shared.waiting.lock().take());
                return Err(Unread::Stopped);
            }
        }
        if shared.gone.load(Ordering::Acquire) { Err(Unread::Gone) } else { Ok(()) }
    }

    /// What waits for the client is dropped.
    pub(super) fn cut(&self) -> Unread {
        drop(self.shared.waiting.lock().take());
        Unread::Stopped
    }
}

/// The pieces as a body. A body that ends without being complete ends in an error, which closes the connection, so that
/// a client never takes half an answer for a whole one.
struct Pieces {
    shared: Arc<Shared>,
    ended: bool,
}

impl Stream for Pieces {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = match self.shared.waiting.lock().as_mut() {
            Some(waiting) => std::task::ready!(waiting.poll_recv(cx)),
            None => None,
        };
        if piece.is_none() {
            self.ended = true;
            if !self.shared.complete.load(Ordering::Acquire) {
                return Poll::Ready(Some(Err(std::io::Error::other("the answer broke off"))));
            }
        }
        Poll::Ready(piece.map(Ok))
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        let Some(mut waiting) = self.shared.waiting.lock().take() else { return };
        let unread = waiting.try_recv().is_ok();
        self.shared.gone.fetch_or(unread, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use futures::StreamExt;

    const SOON: Duration = Duration::from_secs(20);

    async fn put(outbox: &Outbox, budget: &Arc<Budget>, text: &'static str) -> Result<(), Unread> {
        outbox.put(text, Arc::new(budget.hold(text.len()).unwrap())).await
    }

    #[tokio::test]
    async fn bytes_count_until_they_are_written() {
        let budget = Budget::new(1000);
        let (outbox, body) = Outbox::new(SOON);
        put(&outbox, &budget, "abc").await.unwrap();
        put(&outbox, &budget, "de").await.unwrap();
        let finish = tokio::spawn(outbox.finish());
        let mut pieces = body.into_data_stream();
        let first = pieces.next().await.unwrap().unwrap();
        assert_eq!((&first[..], budget.used()), (&b"abc"[..], 5), "taken, but not written");
        drop(first);
        assert_eq!(budget.used(), 2);
        let last = pieces.next().await.unwrap().unwrap();
        assert!(pieces.next().await.is_none());
        drop(pieces);
        tokio::task::yield_now().await;
        assert!(!finish.is_finished(), "the last piece is not written");
        drop(last);
        assert_eq!(timeout(SOON, finish).await.unwrap().unwrap(), Ok(()));
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut() {
        let budget = Budget::new(1000);
        // While something is put in, and when all is in.
        let (outbox, body) = Outbox::new(SOON);
        let full = async { while put(&outbox, &budget, "abc").await.is_ok() {} };
        full.await;
        assert_eq!(budget.used(), 0);
        drop(outbox);
        assert!(body.into_data_stream().next().await.unwrap().is_err(), "half an answer is none");

        let (outbox, body) = Outbox::new(SOON);
        put(&outbox, &budget, "abc").await.unwrap();
        assert_eq!(outbox.finish().await, Err(Unread::Stopped));
        assert_eq!(budget.used(), 0);
        assert!(body.into_data_stream().next().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_is_not() {
        let budget = Budget::new(1000);
        let (outbox, body) = Outbox::new(SOON);
        for _ in 0..5 {
            put(&outbox, &budget, "abc").await.unwrap();
        }
        let finish = tokio::spawn(outbox.finish());
        let mut pieces = body.into_data_stream();
        for _ in 0..5 {
            tokio::time::sleep(SOON / 2).await;
            drop(pieces.next().await.unwrap().unwrap());
        }
        assert_eq!(finish.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_told_apart() {
        let budget = Budget::new(1000);
        let (outbox, body) = Outbox::new(SOON);
        put(&outbox, &budget, "abc").await.unwrap();
        drop(body);
        timeout(SOON, outbox.closes()).await.unwrap();
        assert_eq!(budget.used(), 0);
        assert_eq!(put(&outbox, &budget, "abc").await, Err(Unread::Gone));
        assert_eq!(outbox.finish().await, Err(Unread::Gone));
    }
}
