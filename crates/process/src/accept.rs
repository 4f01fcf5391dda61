//! Taking connections: the loop around `accept` that survives everything that the system may answer.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::Seldom;

/// Pause after the system refused for want of something that only time gives back.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Between two lines of the log about that.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// A host that vanished without a word is noticed after about [`KEEP_ALIVE_IDLE`] and [`KEEP_ALIVE_PROBES`] times
/// [`KEEP_ALIVE_EVERY`].
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_PROBES: u32 = 3;

/// A listener whose connections are set up as ours should be.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    name: &'static str,
    unacknowledged_max: Option<Duration>,
    exhausted: Seldom,
}

impl Acceptor {
    /// `name` is what the log calls it. A connection whose peer acknowledges nothing, or takes nothing, for
    /// `unacknowledged_max` is cut by the system.
    pub fn new(listener: TcpListener, name: &'static str, unacknowledged_max: Option<Duration>) -> Self {
        Self { listener, name, unacknowledged_max, exhausted: Seldom::new(SAY_EVERY) }
    }

    /// The next connection. When the system has no file descriptors left, that is logged with what to do, `relieve` is
    /// called to give some back, and accepting goes on.
    pub async fn accept(&self, relieve: impl Fn()) -> (TcpStream, SocketAddr) {
        loop {
            let error = match self.listener.accept().await {
                Ok((stream, peer)) => match set_up(&stream, self.unacknowledged_max) {
                    Ok(()) => return (stream, peer),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if is_of_one_connection(&error) {
                tracing::debug!(listener = self.name, %error, "a connection was lost before it was accepted");
                continue;
            }
            if let Some(times) = self.exhausted.now() {
                let listener = self.name;
                tracing::error!(
                    listener, %error, times,
                    "cannot accept connections: {}; accepting goes on", advice(&error)
                );
            }
            relieve();
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

/// Small writes go out at once, since someone waits for each; peers that vanish are noticed.
fn set_up(stream: &TcpStream, unacknowledged_max: Option<Duration>) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_PROBES)?;
    #[cfg(target_os = "linux")]
    if let Some(max) = unacknowledged_max {
        sockopt::set_tcp_user_timeout(stream, u32::try_from(max.as_millis()).unwrap_or(u32::MAX))?;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = unacknowledged_max;
    Ok(())
}

/// The peer, or something on the way, has ended this one connection; the next may be fine.
fn is_of_one_connection(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // accept(2): errors of the network that is underneath are those of the new connection.
    const OF_ONE: [Errno; 12] = [
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::INTR,
        Errno::PROTO,
        Errno::PERM,
        Errno::NETDOWN,
        Errno::NOPROTOOPT,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::NETUNREACH,
        Errno::TIMEDOUT,
        // Of `set_up`: it was reset in between.
        Errno::INVAL,
    ];
    Errno::from_io_error(error).is_some_and(|errno| OF_ONE.contains(&errno))
}

/// What whoever runs this can do.
fn advice(error: &io::Error) -> &'static str {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::MFILE) => {
            "this process has as many files open as it may; raise its hard limit (`ulimit -Hn`, LimitNOFILE= of \
             systemd, the container runtime's default) or lower the bounds of its connections"
        }
        Some(Errno::NFILE) => "the whole system has as many files open as it may (sysctl fs.file-max)",
        Some(Errno::NOBUFS | Errno::NOMEM) => {
            "the system has no memory for sockets (sysctl net.ipv4.tcp_mem)"
        }
        _ => "the system refuses",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn a_full_table_of_files_is_not_the_fault_of_one_connection() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            let error = io::Error::from(errno);
            assert!(!is_of_one_connection(&error), "{error}");
            assert_ne!(advice(&error), "the system refuses");
        }
        assert!(is_of_one_connection(&Errno::CONNABORTED.into()));
    }

    #[tokio::test]
    async fn peers_that_vanish_or_take_nothing_are_noticed_by_the_system() {
        use rustix::net::sockopt;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = Acceptor::new(listener, "test", Some(Duration::from_secs(7)));
        let _client = TcpStream::connect(address).await.unwrap();
        let (stream, _) = acceptor.accept(|| ()).await;
        assert!(stream.nodelay().unwrap());
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), KEEP_ALIVE_IDLE);
        assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), KEEP_ALIVE_EVERY);
        assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), KEEP_ALIVE_PROBES);
        #[cfg(target_os = "linux")]
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 7000);
    }
}
