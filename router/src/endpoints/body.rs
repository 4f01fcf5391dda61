//! Request bodies: read in bounded number, within time, at a least rate, and into memory that is taken from the budget.
//!
//! A body that is being read is no request in progress yet, so slow ones keep nobody from being served. When as many are
//! open as may be, one makes room for the next: the one that has been coming for longest, of the client that has most.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use disagg_process::slots::Peer;
use futures::StreamExt;
use http::request::Parts;
use http::{HeaderMap, header};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::budget::{Budget, Held};
use crate::openai::ApiError;

/// Time for a request's body to arrive.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Time before the least rate counts.
const GRACE: Duration = Duration::from_secs(3);
/// A body that comes more slowly than this, once the grace is over, is given up.
const BYTES_PER_SECOND_MIN: usize = 16 * 1024;
/// Bodies that are read at once.
const OPEN_MAX: usize = 1024;
/// A body that has been coming for less than this does not have to make room for another of the same client.
const UNDISTURBED: Duration = Duration::from_millis(500);
/// Room that a body gets before any of it is there.
const FIRST_BYTES: usize = 16 * 1024;

/// The bodies that are being read.
#[derive(Default)]
pub(crate) struct Bodies {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    last: u64,
    /// By number, and so by age.
    bodies: BTreeMap<u64, OpenBody>,
}

struct OpenBody {
    /// Whose it is. `None` in tests of routes that have no listener.
    peer: Option<Peer>,
    since: Instant,
    /// Cancelled when it has to make room.
    displaced: CancellationToken,
}

/// A body's place among those that are being read.
struct Place<'a> {
    bodies: &'a Bodies,
    number: u64,
    /// Cancelled when it has to make room.
    displaced: CancellationToken,
}

impl Bodies {
    /// How many there are.
    pub(crate) fn open(&self) -> usize {
        self.open.lock().bodies.len()
    }

    fn enter(&self, peer: Option<Peer>, max: usize) -> Result<Place<'_>, ApiError> {
        let mut open = self.open.lock();
        if open.bodies.len() >= max {
            let number = open.who_makes_room(peer).ok_or_else(ApiError::too_many_bodies)?;
            if let Some(body) = open.bodies.remove(&number) {
                body.displaced.cancel();
            }
        }
        open.last += 1;
        let (number, displaced) = (open.last, CancellationToken::new());
        open.bodies.insert(number, OpenBody { peer, since: Instant::now(), displaced: displaced.clone() });
        Ok(Place { bodies: self, number, displaced })
    }

    /// Reads a body of at most `bytes_max`. It holds as many bytes of `budget` as have come.
    pub(super) async fn read(
        &self,
        head: &Parts,
        body: Body,
        bytes_max: usize,
        budget: &Arc<Budget>,
    ) -> Result<(Vec<u8>, Held), ApiError> {
        let announced = announced(&head.headers);
        if announced.is_some_and(|length| length > bytes_max as u64) {
            return Err(ApiError::body_too_large(bytes_max));
        }
        let announced = announced.map_or(0, |length| length as usize);
        let place = self.enter(head.extensions.get().copied(), OPEN_MAX)?;
        let mut held = Held::none(budget);
        let mut all = Vec::with_capacity(announced.min(FIRST_BYTES));
        let mut chunks = body.into_data_stream();
        let began = Instant::now();
        loop {
            let too_slow = GRACE + Duration::from_secs_f64(all.len() as f64 / BYTES_PER_SECOND_MIN as f64);
            let next = timeout_at(began + too_slow.min(TIMEOUT), chunks.next());
            let chunk = tokio::select! {
                // A chunk that is there counts, whatever the time is.
                biased;
                next = next => next.map_err(|_| ApiError::body_too_slow(TIMEOUT, BYTES_PER_SECOND_MIN))?,
                () = place.displaced.cancelled() => return Err(ApiError::body_displaced()),
            };
            let Some(chunk) = chunk else { return Ok((all, held)) };
            let chunk = chunk.map_err(|error| ApiError::body_broken(&error))?;
            if all.len() + chunk.len() > bytes_max {
                return Err(ApiError::body_too_large(bytes_max));
            }
            held.grow(chunk.len()).map_err(|error| ApiError::no_room(&error))?;
            if all.capacity() - all.len() < chunk.len() && all.len() >= FIRST_BYTES && announced > all.len() {
                // No more than was announced; pages that nothing has come for take no memory.
                all.reserve_exact(announced - all.len());
            }
            all.extend_from_slice(&chunk);
        }
    }
}

impl Open {
    /// The number of the body that makes room for one of `peer`. A client that has fewer than another need not wait for
    /// that one's; among its own, a body is given some time to come.
    fn who_makes_room(&self, peer: Option<Peer>) -> Option<u64> {
        let mut counts = HashMap::new();
        for body in self.bodies.values() {
            *counts.entry(body.peer).or_insert(0_usize) += 1;
        }
        let own = counts.get(&peer).copied().unwrap_or(0);
        let (&most_of, &most) = counts.iter().max_by_key(|&(_, count)| count)?;
        let (of, undisturbed) = if most > own { (most_of, Duration::ZERO) } else { (peer, UNDISTURBED) };
        let (&number, oldest) = self.bodies.iter().find(|(_, body)| body.peer == of)?;
        (oldest.since.elapsed() >= undisturbed).then_some(number)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.bodies.open.lock().bodies.remove(&self.number);
    }
}

/// The body's length, if the client says it.
fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Only JSON is taken. Web pages can send other types anywhere without being asked for it, so this also keeps them out.
pub(super) fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let essence = given.as_deref().and_then(|given| given.split(';').next()).map(str::trim);
    match essence {
        Some(essence) if essence.eq_ignore_ascii_case("application/json") => Ok(()),
        _ => Err(ApiError::unsupported_media_type(given.as_deref())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::stream;

    fn budget() -> Arc<Budget> {
        Budget::new(1 << 30)
    }

    fn slow(chunk: usize, every: Duration) -> Body {
        let chunks = stream::unfold((), move |()| async move {
            tokio::time::sleep(every).await;
            Some((Ok::<_, std::io::Error>(Bytes::from(vec![b' '; chunk])), ()))
        });
        Body::from_stream(chunks)
    }

    /// What becomes of a body without end, and when; time is tokio's own, which does not pass by itself.
    async fn end_of(body: Body) -> (String, Duration) {
        let (bodies, budget, began) = (Bodies::default(), budget(), Instant::now());
        let (head, ()) = http::Request::new(()).into_parts();
        let refused = bodies.read(&head, body, 1 << 23, &budget).await.unwrap_err();
        assert_eq!((bodies.open(), budget.used()), (0, 0));
        (refused.body.code.unwrap().to_owned(), began.elapsed())
    }

    fn peer(last: u8) -> Peer {
        std::net::IpAddr::from([10, 0, 0, last]).into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_to_keep_coming() {
        let (code, after) = end_of(slow(1, Duration::from_mins(1))).await;
        assert_eq!((code.as_str(), after.as_secs()), ("body_timeout", 3));
        // A byte now and then buys no time.
        let (code, after) = end_of(slow(1, Duration::from_millis(500))).await;
        assert_eq!((code.as_str(), after.as_secs()), ("body_timeout", 3));
        // At the rate it may go on until the time is over.
        let (code, after) = end_of(slow(BYTES_PER_SECOND_MIN, Duration::from_secs(1))).await;
        assert_eq!((code.as_str(), after), ("body_timeout", TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_makes_room() {
        let bodies = Bodies::default();
        let first = bodies.enter(Some(peer(1)), 2).unwrap();
        tokio::time::advance(UNDISTURBED).await;
        let second = bodies.enter(Some(peer(1)), 2).unwrap();
        let third = bodies.enter(Some(peer(1)), 2).unwrap();
        assert!(first.displaced.is_cancelled() && !second.displaced.is_cancelled());
        // The others have only just come.
        assert_eq!(bodies.enter(Some(peer(1)), 2).err().unwrap().status, 429);
        drop((first, third));
        assert_eq!(bodies.open(), 1);
        assert!(bodies.enter(Some(peer(1)), 2).is_ok() && !second.displaced.is_cancelled());
    }

    /// However many one client has, and however young they are, others are read; and a client with few loses none.
    #[tokio::test(start_paused = true)]
    async fn the_client_with_most_makes_room() {
        let bodies = Bodies::default();
        let few = bodies.enter(Some(peer(2)), 4).unwrap();
        let many: Vec<_> = (0..3).map(|_| bodies.enter(Some(peer(1)), 4).unwrap()).collect();
        let another = bodies.enter(Some(peer(3)), 4).unwrap();
        assert!(many[0].displaced.is_cancelled(), "the oldest of the client with most");
        assert!(!few.displaced.is_cancelled(), "though it is older");
        let _second = bodies.enter(Some(peer(2)), 4).unwrap();
        assert!(many[1].displaced.is_cancelled());
        // Now nobody has more than this client, whose own have only just come.
        assert_eq!(bodies.enter(Some(peer(2)), 4).err().unwrap().status, 429);
        assert!(!few.displaced.is_cancelled() && !many[2].displaced.is_cancelled());
        assert!(!another.displaced.is_cancelled());
    }

    #[test]
    fn json_alone_is_taken() {
        let check = |value: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.extend(value.map(|value| (header::CONTENT_TYPE, value.parse().unwrap())));
            check_type(&headers).map_err(|error| error.body.message)
        };
        for taken in ["application/json", "Application/JSON; charset=utf-8", "application/json;charset=UTF-8"]
        {
            assert_eq!(check(Some(taken)), Ok(()));
        }
        for refused in [
            "text/plain",
            "text/plain; application/json",
            "application/jsonx",
            "application/x-www-form-urlencoded",
            "",
        ] {
            assert!(check(Some(refused)).unwrap_err().contains("application/json"), "{refused}");
        }
        assert!(check(None).unwrap_err().contains("no Content-Type"));
    }
}
