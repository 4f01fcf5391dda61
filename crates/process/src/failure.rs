//! What a process that ends with an error tells: one line to people, and a status to whoever started it.

use std::error::Error;

/// Why a process ends, as far as whoever started it needs to know: whether to start it again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// Another start may go well.
    Passing,
    /// Another process listens on the address: start on another one. `EX_TEMPFAIL` of sysexits.h.
    AddressInUse,
    /// A flag, a file or the model is refused, and another start would be refused in the same way. `EX_CONFIG` of
    /// sysexits.h.
    Refused,
}

/// The status of a command line that cannot be parsed, as clap has it.
const USAGE: i32 = 2;

impl Failure {
    /// The exit status.
    pub const fn status(self) -> u8 {
        match self {
            Self::Passing => 1,
            Self::AddressInUse => 75,
            Self::Refused => 78,
        }
    }

    /// What an exit status says. Those that we do not know, a panic's for example, may pass.
    pub fn of_status(status: i32) -> Self {
        match status {
            USAGE => Self::Refused,
            _ => [Self::AddressInUse, Self::Refused]
                .into_iter()
                .find(|failure| i32::from(failure.status()) == status)
                .unwrap_or(Self::Passing),
        }
    }

    /// Of a listener that cannot be had.
    pub fn of_listening(error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::AddrInUse { Self::AddressInUse } else { Self::Passing }
    }
}

/// An error and its causes in one line; a cause that a message has already told is not told again.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot listen on {address}: {source}")]
    struct Told {
        address: &'static str,
        source: std::io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Wrapped(#[source] Told);

    #[test]
    fn causes_are_told_once() {
        let in_use = || Told { address: "[::]:1", source: std::io::ErrorKind::AddrInUse.into() };
        assert_eq!(one_line(&in_use()), "cannot listen on [::]:1: address in use");
        assert_eq!(one_line(&Wrapped(in_use())), "cannot start: cannot listen on [::]:1: address in use");
    }

    #[test]
    fn a_status_says_what_it_was_made_from() {
        for failure in [Failure::Passing, Failure::AddressInUse, Failure::Refused] {
            assert_eq!(Failure::of_status(failure.status().into()), failure);
        }
        assert_eq!(Failure::of_status(USAGE), Failure::Refused);
        assert_eq!(Failure::of_status(101), Failure::Passing);
    }
}
