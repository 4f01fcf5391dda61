//! The Prometheus text format, read strictly.

use std::collections::BTreeMap;

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads a scrape. Panics on a line that is no comment and no sample, on a sample without `# TYPE` before it, and
    /// on one that comes twice.
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        let mut families = Vec::new();
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix('#') {
                if let Some(family) = comment.trim_start().strip_prefix("TYPE ") {
                    families.push(family.split(' ').next().unwrap_or_default().to_owned());
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no metric: {line:?}"));
            let (name, labels) = match series.split_once('{') {
                Some((name, rest)) => (
                    name,
                    parse_labels(rest.strip_suffix('}').unwrap_or_else(|| panic!("no metric: {line:?}"))),
                ),
                None => (series, BTreeMap::new()),
            };
            assert!(
                families.last().is_some_and(|family| name.starts_with(family.as_str())),
                "{name} comes without a # TYPE of its own"
            );
            let value = value.parse().unwrap_or_else(|_| panic!("no number: {line:?}"));
            let twice = metrics.samples.iter().any(|other| other.name == name && other.labels == labels);
            assert!(!twice, "{line:?} comes twice");
            metrics.samples.push(Sample { name: name.to_owned(), labels, value });
        }
        metrics
    }

    /// Sum over all samples of this name whose labels include these; `None` if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let matching: Vec<_> = self
            .samples
            .iter()
            .filter(|sample| sample.name == name)
            .filter(|sample| {
                labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value))
            })
            .map(|sample| sample.value)
            .collect();
        (!matching.is_empty()).then(|| matching.iter().sum())
    }

    /// Labels and value of every sample of this name.
    pub fn samples(&self, name: &str) -> impl Iterator<Item = (&BTreeMap<String, String>, f64)> {
        self.samples
            .iter()
            .filter(move |sample| sample.name == name)
            .map(|sample| (&sample.labels, sample.value))
    }

    /// Names there are.
    pub fn names(&self) -> Vec<&str> {
        self.samples.iter().map(|sample| sample.name.as_str()).collect()
    }
}

/// `a="b",c="d\"e"`.
fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (key, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("no labels: {text:?}"));
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next() {
                Some((at, '"')) => break at,
                Some((_, '\\')) => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, c @ ('"' | '\\'))) => value.push(c),
                    _ => panic!("bad escape: {text:?}"),
                },
                Some((_, c)) => value.push(c),
                None => panic!("no closing quote: {text:?}"),
            }
        };
        assert!(labels.insert(key.to_owned(), value).is_none(), "a label comes twice: {text:?}");
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    labels
}
