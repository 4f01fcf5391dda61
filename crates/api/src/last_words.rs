//! What a program that has ended said last, from the end of its log: the operator quotes it in conditions, and
//! `kubectl disagg check` in its findings.

/// The error that a program ended with, on one line: one with its causes (`Error: …`, as `main` prints it), one of its
/// command line (`error: …`, without the usage that follows), or a panic. Where it names none, the last line that says
/// something.
pub fn last_words(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let is_panic = |line: &str| line.starts_with("thread '") && line.contains("panicked at");
    let begins = |line: &&str| line.starts_with("Error: ") || line.starts_with("error: ") || is_panic(line);
    let words = match lines.iter().rposition(begins) {
        Some(at) if lines[at].starts_with("Error: ") => &lines[at..],
        Some(at) => {
            let rest =
                lines[at..].iter().position(|line| line.trim().is_empty() || line.starts_with("note: "));
            &lines[at..rest.map_or(lines.len(), |length| at + length)]
        }
        None => {
            let last = lines.iter().rposition(|line| !line.trim().is_empty());
            last.map_or(&[][..], |at| &lines[at..=at])
        }
    };
    words.iter().flat_map(|line| line.split_whitespace()).collect::<Vec<_>>().join(" ")
}

/// A program ended since it does not know its command line. The operator writes those of our containers, so image and
/// operator are then of different versions, or the image holds another program.
pub fn is_usage_error(log: &str) -> bool {
    log.trim_end().ends_with("try '--help'.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_quoted_and_not_what_stands_around_it() {
        let usage = "error: unexpected argument '--speed' found\n\n  tip: a similar argument exists: '--seed'\n\n\
                     Usage: disagg-worker [OPTIONS]\n\nFor more information, try '--help'.\n";
        let missing = "error: the following required arguments were not provided:\n  --model <MODEL>\n\nUsage: x\n\n\
                       For more information, try '--help'.\n";
        for (log, expected, is_usage) in [
            ("", "", false),
            ("INFO loading\n\n", "INFO loading", false),
            (
                "INFO loading\nError: cannot load /model\n\nCaused by:\n    no config.json\n",
                "Error: cannot load /model Caused by: no config.json",
                false,
            ),
            (usage, "error: unexpected argument '--speed' found", true),
            (missing, "error: the following required arguments were not provided: --model <MODEL>", true),
            (
                "INFO x\n\nthread 'main' (7) panicked at src/main.rs:2:5:\nboom\nnote: run with `RUST_BACKTRACE=1`\n",
                "thread 'main' (7) panicked at src/main.rs:2:5: boom",
                false,
            ),
            // The last one is what it ended with.
            ("error: first\n\nError: second\n", "Error: second", false),
        ] {
            assert_eq!((last_words(log).as_str(), is_usage_error(log)), (expected, is_usage), "{log:?}");
        }
    }
}
