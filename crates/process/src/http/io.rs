//! The socket of a connection: where its deadlines are kept.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::progress::{Ended, Phase, Progress};

/// What a client of HTTP/2 without TLS begins with.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n";
const NO_HTTP2: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\n\
    content-length: 34\r\nconnection: close\r\n\r\nThis server speaks HTTP/1.1 alone.";

const HEAD_TOO_LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain\r\n\
    content-length: 44\r\nconnection: close\r\n\r\nThe head of the request did not come in time";

/// Every client of HTTP/1.1 takes it at any time before its answer (RFC 9110, 15.2).
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How soon a half-closed connection is looked at again: at first, and at most.
const LOOK_AFTER: Duration = Duration::from_millis(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a client may take to read an answer that was given before its request had been read.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// Deadlines of a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub head: Duration,
    pub idle: Duration,
    pub write: Duration,
}

/// A socket that gives up when its client takes too long.
pub(super) struct Socket {
    stream: TcpStream,
    progress: Arc<Progress>,
    timeouts: Timeouts,
    reading: Timer,
    writing: Timer,
    /// The client sends no more: whoever serves its request has had the time to read what came before.
    ended: bool,
    /// It waits for its answer: how soon to look whether it is still there.
    half_closed: Option<Duration>,
    is_first: bool,
    /// Until when the rest of a refused request is thrown away.
    lingers_until: Option<Instant>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, progress: Arc<Progress>, timeouts: Timeouts) -> Self {
        Self {
            stream,
            progress,
            timeouts,
            reading: Timer::default(),
            writing: Timer::default(),
            ended: false,
            half_closed: None,
            is_first: true,
            lingers_until: None,
        }
    }

    /// Nothing has come yet.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(deadline) = self.progress.read_deadline(self.timeouts.head, self.timeouts.idle) else {
            self.reading.stop();
            return Poll::Pending;
        };
        ready!(self.reading.poll_at(deadline.into(), cx));
        if self.progress.phase() == Phase::Head {
            self.say(HEAD_TOO_LATE);
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// The client has sent its last byte. It may still read (half-closed), or be gone: TCP tells the one from the other
    /// only when something is sent to it, since only who is gone refuses it. So it is sent an interim answer. What it
    /// says to that is looked for from time to time, since a socket that has been read to its end wakes nobody.
    fn poll_half_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.half_closed.is_none() {
            self.half_closed = Some(LOOK_AFTER);
            self.reading.stop();
            if self.progress.takes_interim_answer() && !self.say(INTERIM) {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        }
        loop {
            if !self.progress.owes_answer() {
                // It has its answer.
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = self.stream.take_error()? {
                return Poll::Ready(Err(error));
            }
            ready!(self.reading.poll(cx));
            let wait = self.half_closed.unwrap_or(LOOK_EVERY);
            self.half_closed = Some((2 * wait).min(LOOK_EVERY));
            self.reading.start(Instant::now() + wait);
        }
    }

    /// The client has sent its last byte. hyper asks for more as soon as it holds all of a body, which is before whoever
    /// serves the request has been given the last of it. So that one gets its turn first.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.ended, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match self.progress.ended() {
            Ended::Gone => Poll::Ready(Ok(())),
            Ended::HalfClosed => self.poll_half_closed(cx),
            Ended::NotKnown => {
                self.progress.wake_when_known(cx.waker());
                Poll::Pending
            }
        }
    }

    /// Writes a few words beside hyper, which has none under way. Whether they were taken whole.
    fn say(&self, words: &[u8]) -> bool {
        self.stream.try_write(words).is_ok_and(|written| written == words.len())
    }

    /// What a write has come to; an error if it has been going on for too long without a byte.
    fn poll_written(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.writing.stop();
            return written;
        }
        self.writing.start_unless_running(Instant::now() + self.timeouts.write);
        ready!(self.writing.poll(cx));
        tracing::debug!("a client takes nothing of its answer: cut");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.half_closed.is_some() {
            return this.poll_half_closed(cx);
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Pending => return this.poll_late(cx),
            Poll::Ready(read) => read?,
        }
        let received = &buf.filled()[before..];
        if received.is_empty() {
            return this.poll_ended(cx);
        }
        this.progress.received();
        if std::mem::take(&mut this.is_first) && received.starts_with(HTTP2) {
            this.say(NO_HTTP2);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "HTTP/2")));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.poll_written(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bytes);
        this.poll_written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper calls it when all that it held has been written.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        this.progress.flushed();
        Poll::Ready(Ok(()))
    }

    /// Closes for writing. What a client still sends of a refused request is then thrown away for a moment: closing a
    /// socket with bytes that nobody read resets it, and the client would lose the answer that says why.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let until = if let Some(until) = this.lingers_until {
            until
        } else {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if this.half_closed.is_some() || !this.progress.has_unread() {
                return Poll::Ready(Ok(()));
            }
            this.progress.slot().is_quiet();
            *this.lingers_until.insert(Instant::now() + LINGER_MAX)
        };
        let mut thrown_away = [0; 16 * 1024];
        loop {
            if this.reading.poll_at(until, cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut thrown_away);
            // The client has closed its side, or is gone: so may we.
            if ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buf)).is_err() || buf.filled().is_empty()
            {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// A timer that costs nothing until it is needed.
#[derive(Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    runs: bool,
}

impl Timer {
    fn start(&mut self, deadline: Instant) {
        self.runs = true;
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(deadline),
            None => self.sleep = Some(Box::pin(sleep_until(deadline))),
        }
    }

    fn start_unless_running(&mut self, deadline: Instant) {
        if !self.runs {
            self.start(deadline);
        }
    }

    fn stop(&mut self) {
        self.runs = false;
    }

    /// Ready at the deadline, or when the timer does not run.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.sleep {
            Some(sleep) if self.runs => sleep.as_mut().poll(cx),
            _ => Poll::Ready(()),
        }
    }

    /// Ready at `deadline`, which may be another than the last time.
    fn poll_at(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if !self.runs || self.sleep.as_ref().is_none_or(|sleep| sleep.deadline() != deadline) {
            self.start(deadline);
        }
        self.poll(cx)
    }
}
