//! What a person sees: lines on standard error, each with the name of who speaks, and the result on standard output.

use std::io::{IsTerminal as _, Write};

use parking_lot::Mutex;

use crate::supervise::Output;

/// Name of the lines that `up` itself writes.
const OURSELVES: &str = "up";

/// Colours of children, by turns; readable on dark and on light.
const COLOURS: [&str; 6] = ["36", "33", "32", "35", "34", "31"];

/// Writes whole lines, so that those of several children do not mix.
pub(crate) struct Console {
    colour: bool,
    /// Children in the order of their colours.
    names: Vec<String>,
    /// Width of the longest name.
    width: usize,
    out: Mutex<Box<dyn Write + Send>>,
}

/// Whether standard error takes colours.
pub(crate) fn colour_is_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && std::io::stderr().is_terminal()
}

/// An error that ends the program.
pub(crate) fn error(message: &str) {
    let label = if colour_is_wanted() { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
    // Nobody reads it: nothing left to do.
    let _ = writeln!(std::io::stderr(), "{label} {message}");
}

/// Something to know that is no error.
pub(crate) fn note(message: &str) {
    let _ = writeln!(std::io::stderr(), "note: {message}");
}

/// Text for people while standard output is for a program.
pub(crate) fn inform(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The result of a command, on standard output. A closed pipe is the reader's decision.
pub(crate) fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

impl Console {
    /// On standard error, for children of these names.
    pub(crate) fn stderr(names: Vec<String>) -> Self {
        Self::new(names, colour_is_wanted(), Box::new(std::io::stderr()))
    }

    fn new(names: Vec<String>, colour: bool, out: Box<dyn Write + Send>) -> Self {
        let width = names.iter().map(String::len).max().unwrap_or(0).max(OURSELVES.len());
        Self { colour, names, width, out: Mutex::new(out) }
    }

    /// Something that `up` says.
    pub(crate) fn say(&self, text: &str) {
        for line in text.lines() {
            self.write(OURSELVES, "1", line);
        }
    }

    fn write(&self, name: &str, style: &str, line: &str) {
        let width = self.width;
        let text = if self.colour {
            format!("\x1b[{style}m{name:>width$} |\x1b[0m {line}\n")
        } else {
            format!("{name:>width$} | {line}\n")
        };
        let _ = self.out.lock().write_all(text.as_bytes());
    }
}

impl Output for Console {
    fn line(&self, name: &str, line: &str) {
        let place = self.names.iter().position(|known| known == name).unwrap_or(0);
        self.write(name, COLOURS[place % COLOURS.len()], line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(colour: bool) -> String {
        let page = Page::default();
        let names = vec!["router".to_owned(), "prefill-0".to_owned()];
        let console = Console::new(names, colour, Box::new(page.clone()));
        console.say("two\nlines");
        console.line("router", "hello");
        console.line("prefill-0", "loading");
        let bytes = page.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn names_are_aligned() {
        assert_eq!(
            written(false),
            "       up | two\n       up | lines\n   router | hello\nprefill-0 | loading\n"
        );
    }

    #[test]
    fn names_are_coloured_and_lines_are_not() {
        assert!(written(true).contains("\x1b[33mprefill-0 |\x1b[0m loading\n"));
    }
}
