//! No circles: what a file of this crate uses never uses that file in turn, not even by way of others.
//!
//! A file uses the modules that it declares, and what its `use crate::…` and `use super::…` lines name. Tests are left
//! out: they may look at everything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Modules by path (`["reconcile", "apply"]`), with the code of each up to its tests.
type Modules = BTreeMap<Vec<String>, String>;

fn read(folder: &Path, path: &[String], modules: &mut Modules) {
    for entry in std::fs::read_dir(folder).expect("the folder of the sources") {
        let entry = entry.expect("an entry").path();
        let stem = entry.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        let inner = [path, std::slice::from_ref(&stem)].concat();
        if stem == "tests" || stem == "snapshots" || stem == "bin" || stem == "main" {
        } else if entry.is_dir() {
            read(&entry, &inner, modules);
        } else {
            let code = std::fs::read_to_string(&entry).expect("a source file");
            let code = code.split("\n#[cfg(test)]").take(1).collect();
            modules.insert(if stem == "mod" || stem == "lib" { path.to_vec() } else { inner }, code);
        }
    }
}

/// The paths that a use declaration names: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expanded(tree: &str) -> Vec<String> {
    let Some((head, rest)) = tree.split_once('{') else { return vec![tree.trim().to_owned()] };
    let inner = rest.rsplit_once('}').map_or("", |(inner, _)| inner);
    let mut depth = 0;
    let parts = inner.split(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    let parts = parts.map(str::trim).filter(|part| !part.is_empty());
    parts.flat_map(expanded).map(|part| format!("{}{part}", head.trim())).collect()
}

/// The modules that the module `path` uses.
fn used(path: &[String], code: &str, modules: &Modules) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    for statement in lines.collect::<Vec<_>>().join(" ").split(';') {
        let words = statement.trim().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        if let Some(name) = words.strip_prefix("mod ") {
            found.insert([path, &[name.to_owned()]].concat());
        }
        for named in words.strip_prefix("use ").into_iter().flat_map(expanded) {
            let mut at = path.to_vec();
            for (index, part) in named.split("::").enumerate() {
                match part {
                    "crate" => at.clear(),
                    "super" => _ = at.pop(),
                    // The names of modules, and then that of an item; or another crate.
                    _ if modules.contains_key(&[at.as_slice(), &[part.to_owned()]].concat()) => {
                        at.push(part.to_owned());
                    }
                    _ if index == 0 => at = path.to_vec(),
                    _ => break,
                }
            }
            found.insert(at);
        }
    }
    found.remove(path);
    found.into_iter().filter(|module| modules.contains_key(module)).collect()
}

/// A way from the last of `way` back into it.
fn circle(
    way: &mut Vec<Vec<String>>,
    edges: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
) -> Option<String> {
    for next in &edges[way.last().expect("a way begins somewhere")] {
        if let Some(start) = way.iter().position(|before| before == next) {
            let names = way[start..].iter().chain([next]).map(|module| module.join("::"));
            return Some(names.collect::<Vec<_>>().join(" -> "));
        }
        way.push(next.clone());
        if let Some(found) = circle(way, edges) {
            return Some(found);
        }
        way.pop();
    }
    None
}

fn circles(modules: &Modules) -> Vec<String> {
    let edges = modules.iter().map(|(path, code)| (path.clone(), used(path, code, modules))).collect();
    modules.keys().filter_map(|module| circle(&mut vec![module.clone()], &edges)).collect()
}

#[test]
fn no_module_uses_itself_by_way_of_others() {
    let mut modules = Modules::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[], &mut modules);
    assert!(modules.len() > 40, "the sources are found: {:?}", modules.keys());
    assert_eq!(circles(&modules), Vec::<String>::new());
}

#[test]
fn a_circle_is_found_whichever_way_it_is_written() {
    let module = |path: &str, code: &str| (path.split("::").map(str::to_owned).collect(), code.to_owned());
    let none = [module("a", "mod b;\nuse b::X;"), module("a::b", "use crate::c::Y;"), module("c", "")];
    assert_eq!(circles(&none.clone().into()), Vec::<String>::new());
    for closing in ["use crate::a::X;", "//! Text; more.\n\npub(crate) use crate::{a::{X, Z}, d};"] {
        let mut modules = Modules::from(none.clone());
        modules.insert(vec!["c".to_owned()], closing.to_owned());
        assert!(circles(&modules)[0].starts_with("a -> a::b -> c -> a"), "{closing}");
    }
    let parent = [module("a", "mod b;"), module("a::b", "use super::X;")];
    assert!(!circles(&parent.into()).is_empty(), "a child that uses what its parent defines");
}
