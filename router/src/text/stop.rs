//! Stop strings, found in text that comes in pieces.

/// Finds the first stop string in a stream of text and never gives out any part of it.
///
/// The first is the one that is complete first; of several complete at the same place, the longest. So the result does
/// not depend on how the text is cut into pieces.
///
/// Text may be hidden: it spells special tokens, which clients do not see. A stop string may be in the text with it, as
/// the model wrote it, or without it, as the client sees it.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<Vec<char>>,
    /// Text not given out yet: it may be the beginning of a stop string.
    held: Vec<Char>,
}

#[derive(Clone, Copy, Debug)]
struct Char {
    char: char,
    hidden: bool,
}

/// What a piece of text led to.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Matched {
    /// No stop string yet. This text is certain not to be part of one.
    Text(String),
    /// A stop string is complete. This is the text before it; nothing may follow.
    Stop {
        /// Text that had not been given out.
        before: String,
        /// The stop string.
        stop: String,
    },
}

impl StopMatcher {
    /// `stops` are not empty strings.
    pub(crate) fn new(stops: &[String]) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()), "an empty stop string matches everywhere");
        Self { stops: stops.iter().map(|stop| stop.chars().collect()).collect(), held: Vec::new() }
    }

    /// Takes the next piece, and hidden text that follows it.
    pub(crate) fn push(&mut self, piece: &str, hidden: &str) -> Matched {
        if self.stops.is_empty() {
            return Matched::Text(piece.to_owned());
        }
        let all = piece.chars().map(|char| Char { char, hidden: false });
        for char in all.chain(hidden.chars().map(|char| Char { char, hidden: true })) {
            self.held.push(char);
            let complete = self.stops.iter().filter_map(|stop| Some((stop, self.start_of(stop)?)));
            if let Some((stop, start)) = complete.max_by_key(|(stop, _)| stop.len()) {
                let (before, stop) = (shown(&self.held[..start]), stop.iter().collect());
                self.held.clear();
                return Matched::Stop { before, stop };
            }
        }
        let certain = self.certain();
        let text = shown(&self.held[..certain]);
        self.held.drain(..certain);
        Matched::Text(text)
    }

    /// The text held back, once no more text can come.
    pub(crate) fn finish(&mut self) -> String {
        shown(&std::mem::take(&mut self.held))
    }

    /// How many of the characters held are certain not to belong to a stop string.
    fn certain(&self) -> usize {
        let begun = |stop: &Vec<char>| {
            let longest = self.held.len().min(stop.len() - 1);
            // In one of the two readings a shorter beginning may start earlier.
            (1..=longest).filter_map(|length| self.start_of(&stop[..length])).min()
        };
        self.stops.iter().filter_map(begun).min().unwrap_or(self.held.len())
    }

    /// Where `text` starts if what is held ends with it, with or without what is hidden; the earlier place of both.
    fn start_of(&self, text: &[char]) -> Option<usize> {
        let start = |with_hidden: bool| {
            let read = self.held.iter().enumerate().rev().filter(|(_, held)| with_hidden || !held.hidden);
            let mut read = read.map(|(at, held)| (at, held.char));
            let mut start = None;
            for expected in text.iter().rev() {
                start = Some(read.next().filter(|(_, char)| char == expected)?.0);
            }
            start
        };
        match (start(true), start(false)) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}

/// The text that a client sees of it.
fn shown(held: &[Char]) -> String {
    held.iter().filter(|held| !held.hidden).map(|held| held.char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Text and, after it, hidden text.
    type Piece<'a> = (&'a str, &'a str);

    /// What must come out, found in the whole text at once.
    fn naive(pieces: &[Piece<'_>], stops: &[String]) -> (String, Option<String>) {
        let (mut written, mut shown) = (String::new(), String::new());
        for (piece, hidden) in pieces {
            for (char, is_hidden) in
                piece.chars().map(|char| (char, false)).chain(hidden.chars().map(|char| (char, true)))
            {
                written.push(char);
                if !is_hidden {
                    shown.push(char);
                }
                let found = stops
                    .iter()
                    .filter(|stop| written.ends_with(*stop) || !is_hidden && shown.ends_with(*stop));
                let Some(stop) = found.max_by_key(|stop| stop.len()) else { continue };
                // The stop string as shown ends `shown`; as written, only what it has that is not hidden does.
                let covered = if !is_hidden && shown.ends_with(stop) {
                    stop.len()
                } else {
                    shown_bytes_at_end(pieces, &written, stop.len())
                };
                return (shown[..shown.len() - covered].to_owned(), Some(stop.clone()));
            }
        }
        (shown, None)
    }

    /// How many of the last `bytes` of `written`, a beginning of `pieces`, are not hidden.
    fn shown_bytes_at_end(pieces: &[Piece<'_>], written: &str, bytes: usize) -> usize {
        let hidden = pieces.iter().flat_map(|(piece, hidden)| {
            std::iter::repeat_n(false, piece.len()).chain(std::iter::repeat_n(true, hidden.len()))
        });
        hidden.take(written.len()).skip(written.len() - bytes).filter(|hidden| !hidden).count()
    }

    fn streamed(pieces: &[Piece<'_>], stops: &[String]) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops);
        let mut out = String::new();
        for (piece, hidden) in pieces {
            match matcher.push(piece, hidden) {
                Matched::Text(text) => out.push_str(&text),
                Matched::Stop { before, stop } => return (out + &before, Some(stop)),
            }
        }
        (out + &matcher.finish(), None)
    }

    #[test]
    fn a_stop_string_over_three_pieces_never_shows() {
        let mut matcher = StopMatcher::new(&["\n\nHuman:".to_owned()]);
        assert_eq!(matcher.push("Hi.\n", ""), Matched::Text("Hi.".to_owned()));
        assert_eq!(matcher.push("\nHum", ""), Matched::Text(String::new()));
        let stop = "\n\nHuman:".to_owned();
        assert_eq!(matcher.push("an: x", ""), Matched::Stop { before: String::new(), stop });
    }

    #[test]
    fn a_false_beginning_is_given_out() {
        let mut matcher = StopMatcher::new(&["abc".to_owned()]);
        assert_eq!(matcher.push("xab", ""), Matched::Text("x".to_owned()));
        assert_eq!(matcher.push("abd", ""), Matched::Text("ababd".to_owned()));
        assert_eq!(matcher.push("a", ""), Matched::Text(String::new()));
        assert_eq!(matcher.finish(), "a");
    }

    #[test]
    fn of_stops_that_end_together_the_longest_is_taken() {
        let stops = vec!["c".to_owned(), "abc".to_owned(), "bc".to_owned()];
        assert_eq!(streamed(&[("xa", ""), ("bcd", "")], &stops), ("x".to_owned(), Some("abc".to_owned())));
    }

    #[test]
    fn hidden_text_is_matched_and_never_shown() {
        let stops = ["<|end|>\n".to_owned(), "over".to_owned()];
        let end = |pieces: &[Piece<'_>]| streamed(pieces, &stops);
        assert_eq!(end(&[("a", "<|end|>"), ("\nb", "")]), ("a".to_owned(), Some(stops[0].clone())));
        assert_eq!(end(&[("a", "<|end|>"), (" b", "")]), ("a b".to_owned(), None));
        // As the client sees it, with a hidden token inside.
        assert_eq!(end(&[("x ov", "<|turn|>"), ("er", "")]), ("x ".to_owned(), Some("over".to_owned())));
        assert_eq!(end(&[("x ov", "<|end|>")]), ("x ov".to_owned(), None));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            text in "[ab€ ]{0,24}",
            stops in proptest::collection::vec("[ab€ ]{1,5}", 0..4),
            cuts in proptest::collection::vec(0_usize..40, 0..8),
        ) {
            let mut bounds: Vec<usize> = cuts.into_iter().filter(|at| text.is_char_boundary(*at)).collect();
            bounds.extend([0, text.len()]);
            bounds.sort_unstable();
            let pieces: Vec<Piece<'_>> =
                bounds.windows(2).map(|pair| (&text[pair[0]..pair[1]], "")).collect();
            prop_assert_eq!(streamed(&pieces, &stops), naive(&[(&text, "")], &stops));
        }

        #[test]
        fn hidden_text_counts_in_one_reading_and_not_in_the_other(
            pieces in proptest::collection::vec(("[ab]{0,3}", "[ab]{0,2}"), 0..8),
            stops in proptest::collection::vec("[ab]{1,5}", 0..4),
        ) {
            let pieces: Vec<Piece<'_>> =
                pieces.iter().map(|(piece, hidden)| (piece.as_str(), hidden.as_str())).collect();
            prop_assert_eq!(streamed(&pieces, &stops), naive(&pieces, &stops));
        }
    }
}
