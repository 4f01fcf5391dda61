//! What attackers have in common.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use disagg_e2e::load::Random;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::SharedField;
use crate::field::Field;

/// Open files that the test needs: both ends of some thousand connections are in other processes.
const DESCRIPTORS: u32 = 16_384;

/// A connection over loopback is made, or refused, within this time.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// A connection that was closed comes again after this time.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Connections that are not open by then are waited for beside the attack.
const OPEN_WITHIN: Duration = Duration::from_secs(2);

/// Between two bytes of what is sent slowly.
const BYTE_EVERY: Duration = Duration::from_millis(500);

/// One attack.
pub(crate) struct Attack {
    /// A word or two.
    pub(crate) name: &'static str,
    /// A first token of the honest client that comes by then is in time, however quick it is in a quiet moment.
    pub(crate) floor: Duration,
    pub(crate) run: fn(Attackers) -> Attacking,
}

/// What became of the attackers, or what the product has done with them that it should not.
pub(crate) type Attacking = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// The floor of attacks that cost the product next to nothing, on a busy machine with two cores.
pub(crate) const FLOOR: Duration = Duration::from_millis(500);

/// The floor of attacks that are work by their nature, such as parsing megabytes.
pub(crate) const FLOOR_OF_WORK: Duration = Duration::from_secs(1);

/// The attackers' side of an attack.
#[derive(Clone)]
pub(crate) struct Attackers {
    pub(crate) target: SharedField,
    in_place: watch::Sender<bool>,
    stop: watch::Receiver<bool>,
}

/// The test's side.
pub(crate) struct Control {
    in_place: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
}

impl Attackers {
    pub(crate) fn new(field: &Field) -> (Self, Control) {
        let (in_place, is_in_place) = watch::channel(false);
        let (stop, told) = watch::channel(false);
        (Self { target: field.target(), in_place, stop: told }, Control { in_place: is_in_place, stop })
    }

    /// From now on the honest client is watched.
    pub(crate) fn in_place(&self) {
        self.in_place.send_replace(true);
    }

    /// Waits until the attack is to stop.
    pub(crate) async fn stopped(&self) {
        // Its sender being gone is an end, too.
        let _ = self.stop.clone().wait_for(|stop| *stop).await;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self.stop.borrow() || self.stop.has_changed().is_err()
    }

    pub(crate) fn random(&self) -> Random {
        Random::new(self.target.seed)
    }

    /// Repeats `once` with so many at a time until the attack is to stop; gives the results. The first is under way when
    /// the honest client begins.
    pub(crate) async fn repeat<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        at_once: usize,
        once: impl Fn() -> F + Clone + Send + 'static,
    ) -> Vec<T> {
        let repeating = (0..at_once).map(|_| {
            let (this, once) = (self.clone(), once.clone());
            tokio::spawn(async move {
                let mut results = Vec::new();
                while !this.is_stopped() {
                    tokio::select! {
                        result = once() => results.push(result),
                        () = this.stopped() => {}
                    }
                }
                results
            })
        });
        let repeating: Vec<_> = repeating.collect();
        self.in_place();
        let mut results = Vec::new();
        for task in repeating {
            results.extend(task.await.expect("attackers do not panic"));
        }
        results
    }
}

impl Control {
    /// Whether the attack is in place in time.
    pub(crate) async fn in_place(&self, within: Duration) -> bool {
        let mut in_place = self.in_place.clone();
        // One that has ended already has been in place.
        tokio::time::timeout(within, in_place.wait_for(|in_place| *in_place)).await.is_ok()
    }

    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Raises the bound on this process's open files. Called when the product's processes have been started, which thereby
/// have the bound that users' have.
pub(crate) fn allow_many_connections() {
    let line = format!("--nofile={DESCRIPTORS}:");
    let prlimit = Command::new("prlimit").args(["--pid", &std::process::id().to_string(), &line]).status();
    if !prlimit.is_ok_and(|status| status.success()) {
        println!("the bound on open files stays as it is: prlimit {line} has failed");
    }
}

/// Connects from an address of the attackers' own, so that bounds on one caller do not hit the honest client.
pub(crate) async fn connect(to: &str) -> std::io::Result<TcpStream> {
    connect_with(to, None).await
}

/// The same with a receive buffer of so many bytes, for those that will not read.
pub(crate) async fn connect_with(to: &str, receive_buffer: Option<u32>) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().expect("an address");
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 66], 0)))?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    let connected = tokio::time::timeout(CONNECT_MAX, socket.connect(to)).await;
    connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// Connections of attackers who do not give up.
pub(crate) struct Kept {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    closed: Arc<Count>,
}

impl Attackers {
    /// Keeps so many connections open until the attack is to stop. Each sends `opening`, then a byte every half second if
    /// it is to `trickle`; one that is closed comes again after a while. Returns when all have been open once, or cannot
    /// be soon.
    pub(crate) async fn keep_open(&self, to: &str, count: usize, opening: &[u8], trickle: bool) -> Kept {
        let (opening, closed, opened): (Arc<[u8]>, Arc<Count>, Arc<Count>) =
            (opening.into(), Arc::default(), Arc::default());
        let connect = |_| {
            let (this, to, opening) = (self.clone(), to.to_owned(), Arc::clone(&opening));
            let (closed, opened) = (Arc::clone(&closed), Arc::clone(&opened));
            tokio::spawn(async move {
                let mut is_first = true;
                let again = async {
                    loop {
                        let connection = connect(&to).await;
                        if std::mem::take(&mut is_first) {
                            opened.add();
                        }
                        if let Ok(connection) = connection {
                            hold(connection, &opening, trickle).await;
                            closed.add();
                        }
                        tokio::time::sleep(AGAIN_AFTER).await;
                    }
                };
                tokio::select! {
                    () = again => {}
                    () = this.stopped() => {}
                }
            })
        };
        let tasks = (0..count).map(connect).collect();
        let _ = tokio::time::timeout(OPEN_WITHIN, opened.reach(count as u32)).await;
        Kept { tasks, closed }
    }
}

impl Kept {
    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// How often the other side has closed one.
    pub(crate) fn closed(&self) -> usize {
        self.closed.get() as usize
    }
}

/// Sends what is to be sent, and waits until the other side closes. What it says before is thrown away.
async fn hold(connection: TcpStream, opening: &[u8], trickle: bool) {
    let (mut reader, mut writer) = connection.into_split();
    let send = async {
        let mut sent = writer.write_all(opening).await;
        let mut ticks = tokio::time::interval(BYTE_EVERY);
        while trickle && sent.is_ok() {
            ticks.tick().await;
            sent = writer.write_all(b"a").await;
        }
        // Neither an end of what is sent nor an error is the end of the connection.
        std::future::pending::<()>().await;
    };
    let mut bytes = vec![0; 1024];
    let read = async { while matches!(reader.read(&mut bytes).await, Ok(1..)) {} };
    tokio::select! {
        () = send => {}
        () = read => {}
    }
}

/// A POST with a whole body, after whose answer the connection is closed.
pub(crate) fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// What the other side says to these bytes, up to its end, or so far within `time`.
pub(crate) async fn ask(to: &str, request: &[u8], time: Duration) -> Said {
    let Ok(connection) = connect(to).await else { return Said { bytes: Vec::new(), ended: true } };
    let (mut reader, mut writer) = connection.into_split();
    let mut bytes = Vec::new();
    let talk = async {
        // It may answer and close before it has taken everything.
        let (_, read) = tokio::join!(writer.write_all(request), reader.read_to_end(&mut bytes));
        let _ = read;
    };
    let ended = tokio::time::timeout(time, talk).await.is_ok();
    Said { bytes, ended }
}

/// An answer, as bytes.
pub(crate) struct Said {
    pub(crate) bytes: Vec<u8>,
    /// The connection was closed by the other side.
    pub(crate) ended: bool,
}

impl Said {
    /// HTTP status; `None` if nothing of the kind was said.
    pub(crate) fn status(&self) -> Option<u16> {
        let line = self.bytes.strip_prefix(b"HTTP/1.1 ")?;
        std::str::from_utf8(line.get(..3)?).ok()?.parse().ok()
    }
}

/// How often each status came, for people.
pub(crate) fn tally(statuses: impl IntoIterator<Item = Option<u16>>) -> String {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for status in statuses {
        *counts.entry(status.map_or("none".to_owned(), |status| status.to_string())).or_default() += 1;
    }
    let counts: Vec<_> = counts.into_iter().map(|(status, count)| format!("{count} x {status}")).collect();
    if counts.is_empty() { "no answer".to_owned() } else { counts.join(", ") }
}

/// A number that goes up.
#[derive(Default)]
pub(crate) struct Count(watch::Sender<u32>);

impl Count {
    /// Counts one more; gives how many that are.
    pub(crate) fn add(&self) -> u32 {
        let mut now = 0;
        self.0.send_modify(|count| {
            *count += 1;
            now = *count;
        });
        now
    }

    pub(crate) fn get(&self) -> u32 {
        *self.0.borrow()
    }

    /// Waits until there are so many.
    pub(crate) async fn reach(&self, wanted: u32) {
        // The sender is here.
        let _ = self.0.subscribe().wait_for(|count| *count >= wanted).await;
    }
}
