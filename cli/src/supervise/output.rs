//! From a child's pipe to lines.

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

/// Longer lines are passed on in pieces.
const LINE_BYTES_MAX: u64 = 16 * 1024;

/// Where the children's lines go. Called from several threads.
pub(crate) trait Output: Send + Sync {
    /// One line of the child `name`, without its end.
    fn line(&self, name: &str, line: &str);
}

/// Passes every line of `reader` to `each`, until it ends. A last line without a newline counts.
pub(super) async fn pump(reader: impl AsyncRead + Unpin, each: impl Fn(&str)) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => each(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r'])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    async fn lines(input: &[u8]) -> Vec<String> {
        let lines = Mutex::new(Vec::new());
        pump(input, |line| lines.lock().push(line.to_owned())).await;
        lines.into_inner()
    }

    #[tokio::test]
    async fn lines_are_split_and_the_last_needs_no_newline() {
        assert_eq!(lines(b"one\r\n\ntwo").await, ["one", "", "two"]);
        assert_eq!(lines(b"").await, [""; 0]);
    }

    #[tokio::test]
    async fn endless_lines_and_bad_utf8_are_bounded() {
        let long = vec![b'x'; 40_000];
        let pieces = lines(&long).await;
        assert_eq!(pieces.iter().map(String::len).collect::<Vec<_>>(), [16_384, 16_384, 7_232]);
        assert_eq!(lines(b"a\xffb\n").await, ["a\u{fffd}b"]);
    }
}
