//! The end of what a child says: its last lines, and the error that it ends with.
//!
//! The error is held back until the child's end is known: of a start that is refused for good, it is told once, by whoever
//! gives the child up, however many children say the same.

use std::collections::VecDeque;

/// Lines kept of each child, to show when it is given up. A longer error is not held back.
pub(super) const LINES: usize = 20;

/// What the first line of an error begins with; see `console::error`. A child's standard error is no terminal, so it has
/// no colours.
const ERROR: &str = "error: ";

/// The last lines of one life.
#[derive(Default)]
pub(super) struct LastWords {
    lines: VecDeque<String>,
    /// The error's lines, which nobody has been shown.
    held: Vec<String>,
}

impl LastWords {
    /// Takes a line, and gives those that are to be shown now.
    pub(super) fn hear(&mut self, line: &str) -> Vec<String> {
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line.to_owned());
        let mut shown = Vec::new();
        if self.held.len() == LINES || line.starts_with(ERROR) {
            shown = std::mem::take(&mut self.held);
        }
        if self.held.is_empty() && !line.starts_with(ERROR) {
            shown.push(line.to_owned());
        } else {
            self.held.push(line.to_owned());
        }
        shown
    }

    /// Lines that have not been shown.
    pub(super) fn take_held(&mut self) -> Vec<String> {
        std::mem::take(&mut self.held)
    }

    /// The last lines, whether they have been shown or not.
    pub(super) fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines).into()
    }
}

/// An error's lines as the message that they are.
pub(super) fn message(held: &[String]) -> String {
    let text = held.join("\n");
    text.strip_prefix(ERROR).map(ToOwned::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_at_the_end_is_held_back_with_all_its_lines() {
        let mut words = LastWords::default();
        assert_eq!(words.hear("loading"), ["loading"]);
        assert!(words.hear("error: two problems:").is_empty());
        assert!(words.hear("  a, and b").is_empty());
        let held = words.take_held();
        assert_eq!(message(&held), "two problems:\n  a, and b");
        assert_eq!(words.take_lines(), ["loading", "error: two problems:", "  a, and b"]);
    }

    #[test]
    fn what_was_not_the_end_is_shown_in_order() {
        let mut words = LastWords::default();
        assert!(words.hear("error: one").is_empty());
        assert_eq!(words.hear("error: another"), ["error: one"]);
        let shown: Vec<String> = (0..2 * LINES).flat_map(|line| words.hear(&line.to_string())).collect();
        assert_eq!(shown[..3], ["error: another", "0", "1"]);
        assert_eq!(shown.len(), 2 * LINES + 1, "nothing is lost");
        assert_eq!(words.take_lines().len(), LINES);
    }
}
