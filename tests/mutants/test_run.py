"""Tests run.py on a small crate made on the spot: every verdict that it can give, and that it leaves nothing behind."""

import contextlib
import io
import pathlib
import shutil
import subprocess
import sys
import tempfile
import textwrap
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import run  # noqa: E402

MANIFEST = """
    [package]
    name = "small"
    version = "0.1.0"
    edition = "2024"

    [profile.ci]
    inherits = "dev"
    debug = false
"""

SOURCE = """
    pub fn add(a: u32, b: u32) -> u32 { a + b }
    pub fn untested(a: u32) -> u32 { a * 3 }
    pub fn count_to(limit: u32) -> u32 { let mut n = 0; while n < limit { n += 1; } n }
    // twice
    // twice

    #[test]
    fn adds() { assert_eq!(add(2, 2), 4); }
    #[test]
    fn counts() { assert_eq!(count_to(3), 3); }
"""


def entry(name, find, replace, **more):
    fields = dict(name=name, file="src/lib.rs", find=find, replace=replace, package="small") | more
    quoted = {key: f'"{v}"' if isinstance(v, str) else str(v).lower() for key, v in fields.items()}
    return "[[mutant]]\n" + "".join(f"{key} = {value}\n" for key, value in quoted.items())


class Small(unittest.TestCase):
    """One crate and one cache for all tests: the first build is the only long one."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.root, cls.cache = pathlib.Path(cls.folder.name, "small"), pathlib.Path(cls.folder.name, "cache")
        (cls.root / "src").mkdir(parents=True)
        (cls.root / "Cargo.toml").write_text(textwrap.dedent(MANIFEST))
        (cls.root / "src/lib.rs").write_text(textwrap.dedent(SOURCE))
        (cls.root / ".gitignore").write_text("/target\n/Cargo.lock\n")
        # The same Rust version as ours: a machine may have no default one.
        shutil.copy(pathlib.Path(__file__).resolve().parents[2] / "rust-toolchain.toml", cls.root)
        subprocess.run(["git", "init", "-q"], cwd=cls.root, check=True)

    def run_with(self, *entries, only=""):
        """(exit status, what was printed) with these mutants."""
        (self.root / "mutants.toml").write_text("\n".join(entries))
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status = run.main(["--root", str(self.root), "--cache", str(self.cache), "--only", only])
        return status, out.getvalue()

    def verdict(self, *entries):
        status, printed = self.run_with(*entries)
        self.assertEqual(status, 0 if "1 caught, 0 survived, 0 could not" in printed else 1, printed)
        return printed.splitlines()[0]

    def test_a_noticed_mutant_is_caught_by_name_of_the_test(self):
        self.assertRegex(self.verdict(entry("m", "a + b", "a - b")), r"caught .*: adds$")

    def test_an_unnoticed_mutant_survives(self):
        self.assertIn("SURVIVED", self.verdict(entry("m", "a * 3", "a * 4")))

    def test_the_filter_limits_which_tests_may_notice(self):
        self.assertIn("SURVIVED", self.verdict(entry("m", "a + b", "a - b", test="counts")))

    def test_a_filter_that_matches_no_test_is_an_error(self):
        self.assertIn("no test has run", self.verdict(entry("m", "a + b", "a - b", test="no_such_test")))

    def test_a_mutant_that_does_not_compile_is_an_error(self):
        self.assertIn("does not compile: error", self.verdict(entry("m", "a + b", "a + nothing")))

    def test_text_that_is_not_found_exactly_once_is_an_error(self):
        self.assertIn("occurs 0 times", self.verdict(entry("m", "not there", "x")))
        self.assertIn("occurs 2 times", self.verdict(entry("m", "// twice", "x")))

    def test_an_endless_loop_counts_only_if_said_so(self):
        endless = dict(find="n += 1", replace="n += 0", timeout_s=5)
        self.assertIn("timeout_is_caught is not set", self.verdict(entry("m", **endless)))
        self.assertIn("caught", self.verdict(entry("m", **endless, timeout_is_caught=True)))

    def test_a_crash_of_the_test_process_is_caught(self):
        self.assertIn("crashed", self.verdict(entry("m", "a + b", "{ let _ = (a, b); std::process::abort() }")))

    def test_each_mutant_is_alone(self):
        # The first must be gone when the second is tried, or its failing test would be taken for a catch.
        status, printed = self.run_with(entry("first", "a + b", "a - b"), entry("second", "a * 3", "a * 4"))
        self.assertEqual(status, 1)
        self.assertIn("1 caught, 1 survived, 0 could not be tried", printed)

    def test_the_tree_is_left_alone_and_the_copy_is_clean(self):
        before = (self.root / "src/lib.rs").read_text()
        self.run_with(entry("m", "a + b", "a - b"))
        self.assertEqual((self.root / "src/lib.rs").read_text(), before)
        self.assertEqual((self.cache / "mutants/tree/src/lib.rs").read_text(), before)

    def test_wrong_lists_are_refused_before_anything_runs(self):
        for wrong, word in [
            ("", "no mutants.toml has a mutant"),
            ("[[mutants]]\nname = 'm'", "unknown key 'mutants'"),
            (entry("m", "a + b", "a - b", tset="adds"), "unknown key 'tset'"),
            ("[[mutant]]\nname = 'm'", "'file' is missing"),
            (entry("m", "a + b", "a - b") + entry("m", "a * 3", "a"), "is taken by"),
            (entry("m", "a + b", "a + b"), "changes nothing"),
            (entry("m", "a + b", "a - b", timeout_s="5"), "'timeout_s' is not of type int"),
        ]:
            status, printed = self.run_with(wrong)
            self.assertEqual(status, 2, printed)
            self.assertIn(word, printed)


if __name__ == "__main__":
    unittest.main()
