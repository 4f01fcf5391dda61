//! Stop strings, found in text that comes in pieces.

/// Finds the first stop string in a stream of text and never gives out any part of it.
///
/// The first is the one that is complete first; of several complete at the same place, the longest. So the result does
/// not depend on how the text is cut into pieces.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    /// Text not given out yet: it may be the beginning of a stop string.
    held: String,
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
    pub(crate) fn new(stops: Vec<String>) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()), "an empty stop string matches everywhere");
        Self { stops, held: String::new() }
    }

    /// Takes the next piece.
    pub(crate) fn push(&mut self, piece: &str) -> Matched {
        if self.stops.is_empty() {
            return Matched::Text(piece.to_owned());
        }
        let old = self.held.len();
        self.held.push_str(piece);
        for (at, char) in piece.char_indices() {
            let end = old + at + char.len_utf8();
            let seen = &self.held[..end];
            let longest =
                self.stops.iter().filter(|stop| seen.ends_with(stop.as_str())).max_by_key(|s| s.len());
            if let Some(stop) = longest {
                let before = self.held[..end - stop.len()].to_owned();
                self.held.clear();
                return Matched::Stop { before, stop: stop.clone() };
            }
        }
        let keep = self.longest_beginning();
        let rest = self.held.split_off(self.held.len() - keep);
        Matched::Text(std::mem::replace(&mut self.held, rest))
    }

    /// The text held back, once no more text can come.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of `held` that some stop string begins with; the most of any.
    fn longest_beginning(&self) -> usize {
        let longest_of = |stop: &String| {
            let limit = self.held.len().min(stop.len() - 1);
            (1..=limit)
                .rev()
                .filter(|length| stop.is_char_boundary(*length))
                .find(|length| self.held.as_bytes().ends_with(&stop.as_bytes()[..*length]))
        };
        self.stops.iter().filter_map(longest_of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What must come out, found in the whole text at once.
    fn naive(text: &str, stops: &[String]) -> (String, Option<String>) {
        for (at, char) in text.char_indices() {
            let end = at + char.len_utf8();
            let found = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(stop) = found.max_by_key(|stop| stop.len()) {
                return (text[..end - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    fn streamed(pieces: &[&str], stops: &[String]) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.to_vec());
        let mut out = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                Matched::Text(text) => out.push_str(&text),
                Matched::Stop { before, stop } => return (out + &before, Some(stop)),
            }
        }
        (out + &matcher.finish(), None)
    }

    #[test]
    fn a_stop_string_over_three_pieces_never_shows() {
        let mut matcher = StopMatcher::new(vec!["\n\nHuman:".to_owned()]);
        assert_eq!(matcher.push("Hi.\n"), Matched::Text("Hi.".to_owned()));
        assert_eq!(matcher.push("\nHum"), Matched::Text(String::new()));
        let stop = "\n\nHuman:".to_owned();
        assert_eq!(matcher.push("an: x"), Matched::Stop { before: String::new(), stop });
    }

    #[test]
    fn a_false_beginning_is_given_out() {
        let mut matcher = StopMatcher::new(vec!["abc".to_owned()]);
        assert_eq!(matcher.push("xab"), Matched::Text("x".to_owned()));
        assert_eq!(matcher.push("abd"), Matched::Text("ababd".to_owned()));
        assert_eq!(matcher.push("a"), Matched::Text(String::new()));
        assert_eq!(matcher.finish(), "a");
    }

    #[test]
    fn of_stops_that_end_together_the_longest_is_taken() {
        let stops = vec!["c".to_owned(), "abc".to_owned(), "bc".to_owned()];
        assert_eq!(streamed(&["xa", "bcd"], &stops), ("x".to_owned(), Some("abc".to_owned())));
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
            let pieces: Vec<&str> = bounds.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(streamed(&pieces, &stops), naive(&text, &stops));
        }
    }
}
