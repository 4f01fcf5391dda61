//! Arguments about who may connect, and how many.

use clap::builder::RangedU64ValueParser;

/// Bounds and deadlines of clients' connections, and whose requests are taken.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Connections")]
pub struct ConnectionArgs {
    /// Connections of clients at once. At the bound, a new one takes the place of the one that has been idle longest;
    /// when none is idle, /health and /ready are answered and all else is 503. [default: 4 times --max-in-flight, at
    /// least 4096]
    #[arg(long, env = "DISAGG_MAX_CONNECTIONS", value_name = "N",
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=1_000_000))]
    pub max_connections: Option<u32>,

    /// Of these, connections from one address (for IPv6, one /64 network), by the same rule. A proxy in front of the
    /// router is one address. [default: half of --max-connections]
    #[arg(long, env = "DISAGG_MAX_CONNECTIONS_PER_CLIENT", value_name = "N",
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=1_000_000))]
    pub max_connections_per_client: Option<u32>,

    /// Longest time for the head of a request to come in: its line and headers, at most 64 KiB. Later ones are
    /// answered 408.
    #[arg(long, env = "DISAGG_HEAD_TIMEOUT_SECONDS", value_name = "SECONDS", default_value_t = 10,
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=300))]
    pub head_timeout_seconds: u32,

    /// How long a connection is kept open for another request. The default is a little more than what the load
    /// balancers of large clouds wait (600), so that these close first and none sends a request into a connection that
    /// is just being closed.
    #[arg(long, env = "DISAGG_IDLE_TIMEOUT_SECONDS", value_name = "SECONDS", default_value_t = 620,
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=86_400))]
    pub idle_timeout_seconds: u32,

    /// A further name by which requests are taken (the Host header), when --listen is on loopback: that of a proxy on
    /// this machine. Repeat it for each. Other names than localhost, 127.0.0.1 and [::1] are refused there, since
    /// otherwise any web page could use the router through its reader's browser (DNS rebinding).
    #[arg(long = "allowed-host", env = "DISAGG_ALLOWED_HOSTS", value_name = "NAME", value_delimiter = ',')]
    pub allowed_hosts: Vec<String>,

    /// Web pages that may use the API from a browser (CORS), such as https://chat.example.com; repeat it for each; `*`
    /// is every page. Pages of the reader's own machine (http://localhost:3000) always may.
    #[arg(long = "cors-origin", env = "DISAGG_CORS_ORIGINS", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origins: Vec<String>,
}
