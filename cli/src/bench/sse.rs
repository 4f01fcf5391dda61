//! Server-sent events from any server: what the standard asks of a reader, as far as OpenAI's streams use it.

/// Bytes of one event that are accepted.
const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Splits a body into the data of its events as pieces arrive.
#[derive(Default)]
pub(super) struct Events {
    /// The line that is not complete yet.
    line: Vec<u8>,
    /// Data lines of the event that is not complete yet.
    data: Option<String>,
}

/// The stream cannot be read on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum SseError {
    #[error("an event is larger than {EVENT_BYTES_MAX} bytes")]
    TooLarge,
    #[error("an event is not UTF-8")]
    NotUtf8,
}

impl Events {
    /// Takes the next piece and adds the data of the events that it completes to `events`.
    pub(super) fn push(&mut self, piece: &[u8], events: &mut Vec<String>) -> Result<(), SseError> {
        for part in piece.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() + self.data.as_ref().map_or(0, String::len) > EVENT_BYTES_MAX {
                return Err(SseError::TooLarge);
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                let line = std::str::from_utf8(&line).map_err(|_| SseError::NotUtf8)?;
                events.extend(self.line(line.trim_end_matches(['\r', '\n'])));
            }
        }
        Ok(())
    }

    /// An empty line ends an event. Comments and fields other than `data` mean nothing here.
    fn line(&mut self, line: &str) -> Option<String> {
        if line.is_empty() {
            return self.data.take();
        }
        if let Some(data) = line.strip_prefix("data:") {
            let data = data.strip_prefix(' ').unwrap_or(data);
            match &mut self.data {
                None => self.data = Some(data.to_owned()),
                Some(before) => {
                    before.push('\n');
                    before.push_str(data);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], piece: usize) -> Result<Vec<String>, SseError> {
        let (mut parser, mut events) = (Events::default(), Vec::new());
        for piece in text.chunks(piece) {
            parser.push(piece, &mut events)?;
        }
        Ok(events)
    }

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        let text = ": hello\n\ndata: {\"a\": \"ü\"}\n\nevent: x\r\ndata:two\r\ndata: lines\r\n\r\n\n\
                    data: [DONE]\n\ndata: cut off";
        let wanted = ["{\"a\": \"ü\"}", "two\nlines", "[DONE]"];
        for piece in 1..text.len() {
            assert_eq!(read(text.as_bytes(), piece).unwrap(), wanted);
        }
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        assert_eq!(read(b"data: \xff\n\n", 3), Err(SseError::NotUtf8));
        assert_eq!(read(&vec![b'x'; EVENT_BYTES_MAX + 1], 4096), Err(SseError::TooLarge));
    }
}
