//! Text from elsewhere, for conditions, Events and the log.

/// The most characters of a text from elsewhere.
const LONGEST: usize = 400;

/// `text` on one line, not too long, and without a full stop at its end.
pub(crate) fn short(text: &str) -> String {
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = words.char_indices().nth(LONGEST) {
        words.truncate(end);
        words.push('…');
    }
    words.trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_line_with_a_bound_in_characters() {
        assert_eq!(short(" a\n  b. "), "a b");
        let cut = short(&"ß ".repeat(1000));
        assert_eq!((cut.chars().count(), cut.ends_with('…')), (LONGEST + 1, true));
    }
}
