//! Timed choices of algorithms, kept on disk: cublasLt's description of an algorithm may be used again with the same
//! version of the library, and a time holds for the same GPU and driver. One file for each such combination. The forms of
//! decode steps that timing has chosen are kept there too.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use disagg_process::file;
use xxhash_rust::xxh3::xxh3_64;

use super::blas::Shape;
use super::compile::cache_folder;
use super::forward::DecodeForm;

/// Of the file; a line is a hundred bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Words of `cublasLtMatmulAlgo_t`.
pub(super) type Algorithm = [u64; 8];

/// What is known of one GPU with one driver and one library.
pub(super) struct Tuned {
    path: Option<PathBuf>,
    known: Known,
    changed: bool,
}

#[derive(PartialEq, Default, Debug)]
struct Known {
    algorithms: HashMap<Shape, Algorithm>,
    forms: HashMap<String, DecodeForm>,
}

impl Tuned {
    /// What earlier starts found out. `key` names GPU, driver and library.
    pub(super) fn load(key: &str) -> Self {
        let file = format!("{:016x}.txt", xxh3_64(key.as_bytes()));
        let path = cache_folder().map(|folder| folder.join("cublaslt").join(file));
        let text =
            path.as_ref().and_then(|path| file::read_text(path, FILE_BYTES_MAX).ok()).unwrap_or_default();
        Self { path, known: parse(&text), changed: false }
    }

    pub(super) fn get(&self, shape: &Shape) -> Option<Algorithm> {
        self.known.algorithms.get(shape).copied()
    }

    pub(super) fn put(&mut self, shape: Shape, algorithm: Algorithm) {
        self.known.algorithms.insert(shape, algorithm);
        self.changed = true;
    }

    /// `key`: words that say what was timed.
    pub(super) fn form(&self, key: &str) -> Option<DecodeForm> {
        self.known.forms.get(key).copied()
    }

    pub(super) fn put_form(&mut self, key: String, form: DecodeForm) {
        self.known.forms.insert(key, form);
        self.changed = true;
    }

    /// Writes what is new. A cache that cannot be written is no error.
    pub(super) fn save(&mut self) {
        let Some(path) = self.path.as_ref().filter(|_| self.changed) else { return };
        // In one step, so that a worker starting beside this one never reads half a file.
        match file::write(path, print(&self.known).as_bytes()) {
            Ok(()) => self.changed = false,
            Err(error) => {
                tracing::debug!(%error, "timed choices of algorithms not kept");
            }
        }
    }
}

/// What a line begins with that says which form a decode step has.
const FORM: &str = "decode";

/// One line a shape: m, n, k, the three flags, then the algorithm's words in hexadecimal. One line a form: "decode", its
/// key, the form.
fn print(known: &Known) -> String {
    let mut lines: Vec<String> = known
        .algorithms
        .iter()
        .map(|(shape, algorithm)| {
            let Shape { m, n, k, bias, float_out, accumulate } = *shape;
            let mut line =
                format!("{m} {n} {k} {} {} {}", u8::from(bias), u8::from(float_out), u8::from(accumulate));
            for word in algorithm {
                let _ = write!(line, " {word:016x}");
            }
            line
        })
        .chain(known.forms.iter().map(|(key, form)| format!("{FORM} {key} {}", form.as_word())))
        .collect();
    lines.sort();
    lines.join("\n") + "\n"
}

/// Lines that are not as [`print`] writes them are left out.
fn parse(text: &str) -> Known {
    Known {
        algorithms: text.lines().filter_map(parse_algorithm).collect(),
        forms: text.lines().filter_map(parse_form).collect(),
    }
}

fn parse_form(line: &str) -> Option<(String, DecodeForm)> {
    let (key, form) = line.strip_prefix(FORM)?.strip_prefix(' ')?.rsplit_once(' ')?;
    Some((key.to_owned(), DecodeForm::from_word(form)?))
}

fn parse_algorithm(line: &str) -> Option<(Shape, Algorithm)> {
    let words: Vec<&str> = line.split(' ').collect();
    let (sizes, flags, algorithm) = (words.get(..3)?, words.get(3..6)?, words.get(6..)?);
    let size = |at: usize| sizes[at].parse::<u32>().ok();
    let flag = |at: usize| match flags[at] {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    };
    let shape = Shape {
        m: size(0)?,
        n: size(1)?,
        k: size(2)?,
        bias: flag(0)?,
        float_out: flag(1)?,
        accumulate: flag(2)?,
    };
    let algorithm: Vec<u64> =
        algorithm.iter().map(|word| u64::from_str_radix(word, 16)).collect::<Result<_, _>>().ok()?;
    Some((shape, algorithm.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Known {
        let shape = |m, bias| Shape { m, n: 4096, k: 14336, bias, float_out: !bias, accumulate: bias };
        let form = DecodeForm::Chain([false, true, false, false]);
        Known {
            algorithms: HashMap::from([
                (shape(1, true), [1, 2, 3, 4, 5, 6, 7, u64::MAX]),
                (shape(2048, false), [9; 8]),
            ]),
            forms: HashMap::from([("64 4096 14336".to_owned(), form)]),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(parse(&print(&entries())), entries());
    }

    #[test]
    fn damaged_lines_are_left_out() {
        let text = print(&Known { forms: HashMap::new(), ..entries() });
        let (first, second) = text.trim().split_once('\n').expect("two lines");
        let read = |text: &str| parse(text).algorithms.len();
        assert_eq!(read(&format!("{first}\n{}", &second[..second.len() - 20])), 1, "too few words");
        assert_eq!(read(&format!("{first} 0\n{second}")), 1, "too many words");
        assert_eq!(parse("1 2 3 4 5 6\nnot a line\n\ndecode 64 oolx\ndecode\ndecode oooo"), Known::default());
    }
}
