#!/usr/bin/env python3
"""Breaks the code on purpose, one small change at a time, and checks that a test notices.

Every `mutants.toml` in the repository lists mutants of the code beside it:

    [[mutant]]
    name = "handoff: accepts a stale epoch"     # unique, for people
    file = "crates/core/src/handoff.rs"         # relative to the root of the repository
    find = "epoch != self.epoch"                # must occur exactly once in the file
    replace = "false"
    package = "disagg-core"                     # whose tests must fail
    test = "handoff"                            # optional: only tests whose name contains this
    timeout_s = 300                             # optional: for one run of the tests
    timeout_is_caught = true                    # optional: for mutants that make a loop endless

The tree (what git tracks, and new files that it does not ignore) is copied to the user's cache folder, so nothing
here can leave a mutant in the work tree. For each mutant: it must be found exactly once, it must compile, and a test
must fail. The tests must pass without the mutant, and there must be at least one. Needs only Python 3.11, git and cargo.

Exit status: 0 all were caught; 1 a mutant survived or could not be tried; 2 wrong usage.
"""

import argparse
import fcntl
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass

PROFILE = "ci"
# Packages whose tests spend more time in the compiler than in the code, besides those that the profile itself names.
UNOPTIMISED = {"disagg-router"}
TIMEOUT_S = 300
BUILD_TIMEOUT_S = 1800
REQUIRED = {"name", "file", "find", "replace", "package"}
OPTIONAL = {"test": str, "timeout_s": int, "timeout_is_caught": bool}

CAUGHT, SURVIVED, ERROR = "caught", "SURVIVED", "ERROR"


class Problem(Exception):
    """An error that stops one mutant or the whole run; the text is for people."""


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    find: str
    replace: str
    package: str
    test: str = ""
    timeout_s: int = TIMEOUT_S
    timeout_is_caught: bool = False


@dataclass(frozen=True)
class Outcome:
    mutant: Mutant
    verdict: str
    detail: str
    seconds: float


def tree_files(root):
    """Paths of the work tree, relative to `root`: tracked ones that exist, and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, check=True, stdout=subprocess.PIPE,
    ).stdout.decode()
    return sorted(path for path in set(listed.split("\0")) if path and (root / path).is_file())


def read_mutants(root, files):
    """All mutants of the tree, in order of file and entry. Raises `Problem` for anything invalid."""
    mutants, seen = [], {}
    for path in (f for f in files if pathlib.PurePath(f).name == "mutants.toml"):
        try:
            document = tomllib.loads((root / path).read_text())
        except tomllib.TOMLDecodeError as error:
            raise Problem(f"{path}: {error}") from error
        if unknown := set(document) - {"mutant"}:
            raise Problem(f"{path}: unknown key {sorted(unknown)[0]!r}; entries are [[mutant]]")
        for number, entry in enumerate(document.get("mutant", []), start=1):
            where = f"{path}, mutant {number}"
            if missing := REQUIRED - set(entry):
                raise Problem(f"{where}: {sorted(missing)[0]!r} is missing")
            if unknown := set(entry) - REQUIRED - set(OPTIONAL):
                raise Problem(f"{where}: unknown key {sorted(unknown)[0]!r}")
            for key, value in entry.items():
                if type(value) is not OPTIONAL.get(key, str):
                    raise Problem(f"{where}: {key!r} is not of type {OPTIONAL.get(key, str).__name__}")
            mutant = Mutant(**entry)
            if mutant.name in seen:
                raise Problem(f"{where}: the name {mutant.name!r} is taken by {seen[mutant.name]}")
            if mutant.find == mutant.replace:
                raise Problem(f"{where}: changes nothing")
            seen[mutant.name] = where
            mutants.append(mutant)
    return mutants


def sync(root, scratch, files):
    """Makes `scratch` equal to the listed files of `root`.

    Files with other contents are written anew, so that their time of change is now: cargo decides by it what to
    build again, also after a mutant has been taken back.
    """
    wanted = set(files)
    for folder, folders, names in os.walk(scratch):
        folders[:] = [name for name in folders if name != ".git"]
        for name in names:
            path = pathlib.Path(folder, name)
            if path.relative_to(scratch).as_posix() not in wanted:
                path.unlink()
    for file in files:
        source, copy = root / file, scratch / file
        content = source.read_bytes()
        if not copy.is_file() or copy.read_bytes() != content:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
            copy.chmod(source.stat().st_mode)


def mutated(content, mutant):
    """The file's text with the mutant in it."""
    found = content.count(mutant.find)
    if found != 1:
        raise Problem(f"the text to replace occurs {found} times in {mutant.file}, not once")
    return content.replace(mutant.find, mutant.replace)


def run(command, cwd, env, timeout_s):
    """Runs a command with no input. Returns (exit status or None when it ran out of time, all it printed).

    The command has a process group of its own, so that nothing of it is left behind.
    """
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, text=True, errors="replace",
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return None, output
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


class Runner:
    """Tries mutants in one scratch copy with its own target folder."""

    def __init__(self, root, cache, files):
        self.root, self.files = root, files
        self.scratch, self.target = cache / "mutants" / "tree", cache / "mutants" / "target"
        self.scratch.mkdir(parents=True, exist_ok=True)
        # One run at a time: two runs would revert each other's mutants.
        self.lock = open(cache / "mutants" / "lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Problem(f"another run holds {self.lock.name}") from error
        self.env = dict(
            os.environ,
            CARGO_TARGET_DIR=str(self.target),
            CARGO_TERM_COLOR="never",
            # Each mutant is one line: what it does not touch is not compiled again.
            CARGO_PROFILE_CI_INCREMENTAL="true",
            PROPTEST_DISABLE_FAILURE_PERSISTENCE="true",
        )
        self.baselines = {}

    def cargo(self, mutant, *more):
        unoptimised = f"profile.{PROFILE}.package.{mutant.package}.opt-level=0"
        options = ["--config", unoptimised] if mutant.package in UNOPTIMISED else []
        return ["cargo", "test", *options, "--profile", PROFILE, "--package", mutant.package, *more]

    def build(self, mutant):
        status, output = run(self.cargo(mutant, "--no-run"), self.scratch, self.env, BUILD_TIMEOUT_S)
        if status is None:
            raise Problem(f"the build took over {BUILD_TIMEOUT_S} s")
        if status != 0:
            first = next((line for line in output.splitlines() if line.startswith("error")), "no error line")
            raise Problem(f"does not compile: {first}")

    def test(self, mutant):
        """(exit status or None, output) of the tests that must fail."""
        filters = [mutant.test] if mutant.test else []
        return run(self.cargo(mutant, *filters), self.scratch, self.env, mutant.timeout_s)

    def baseline(self, mutant):
        """Checks, once for each package and filter, that there are tests and that they pass without a mutant."""
        key = (mutant.package, mutant.test)
        if key not in self.baselines:
            self.baselines[key] = self.check_baseline(mutant)
        if self.baselines[key]:
            raise Problem(self.baselines[key])

    def check_baseline(self, mutant):
        sync(self.root, self.scratch, self.files)
        try:
            self.build(mutant)
        except Problem as problem:
            return f"without the mutant: {problem}"
        status, output = self.test(mutant)
        if status != 0:
            why = "run out of time" if status is None else "fail: " + (failed_tests(output) or "see the package")
            return f"without the mutant the tests {why}"
        if not sum(int(n) for n in re.findall(r"^test result: ok\. (\d+) passed", output, re.MULTILINE)):
            return "no test has run"
        return ""

    def verdict(self, mutant):
        """(verdict, detail) of one mutant."""
        if mutant.file not in self.files:
            raise Problem(f"no file {mutant.file}")
        changed = mutated((self.root / mutant.file).read_text(), mutant)
        self.baseline(mutant)
        sync(self.root, self.scratch, self.files)
        (self.scratch / mutant.file).write_text(changed)
        self.build(mutant)
        status, output = self.test(mutant)
        if status is None:
            if mutant.timeout_is_caught:
                return CAUGHT, f"ran over {mutant.timeout_s} s"
            raise Problem(f"ran over {mutant.timeout_s} s, and timeout_is_caught is not set")
        if status == 0:
            return SURVIVED, "every test passed"
        if names := failed_tests(output):
            return CAUGHT, names
        if "process didn't exit successfully" in output:
            return CAUGHT, "the test process crashed"
        raise Problem(f"cargo ended with status {status}, but no test failed")

    def try_mutant(self, mutant):
        start = time.monotonic()
        try:
            verdict, detail = self.verdict(mutant)
        except Problem as problem:
            verdict, detail = ERROR, str(problem)
        return Outcome(mutant, verdict, detail, time.monotonic() - start)


def failed_tests(output):
    """Names of the tests that failed, at most three of them, as one line; empty if none did."""
    names = list(dict.fromkeys(re.findall(r"^test (\S+)(?: - should panic)? \.\.\. FAILED", output, re.MULTILINE)))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def default_cache():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(base, "disagg")


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Checks that the tests notice the mutants listed in mutants.toml files.")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    parser.add_argument("--cache", type=pathlib.Path, default=default_cache())
    parser.add_argument("--only", default="", help="only mutants whose name has this")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    options = parser.parse_args(arguments)
    root, cache = options.root.resolve(), options.cache.resolve()

    try:
        files = tree_files(root)
        mutants = [mutant for mutant in read_mutants(root, files) if options.only in mutant.name]
        if not mutants:
            raise Problem(f"no mutant has {options.only!r} in its name" if options.only else "no mutants.toml has a mutant")
        if options.list:
            for mutant in mutants:
                print(f"{mutant.package}  {mutant.file}  {mutant.name}")
            return 0
        runner = Runner(root, cache, files)
    except Problem as problem:
        print(f"mutants: {problem}", file=sys.stderr)
        return 2

    outcomes = []
    for number, mutant in enumerate(mutants, start=1):
        outcome = runner.try_mutant(mutant)
        outcomes.append(outcome)
        print(f"[{number}/{len(mutants)}] {outcome.verdict:8} {outcome.seconds:6.1f} s  {mutant.name}: {outcome.detail}", flush=True)
    sync(root, runner.scratch, files)
    return report(outcomes)


def report(outcomes):
    """Prints the table of all outcomes; the exit status."""
    width = max(len(outcome.mutant.name) for outcome in outcomes)
    print(f"\n{'mutant':{width}}  {'package':16}  {'verdict':8}  detail")
    for outcome in outcomes:
        print(f"{outcome.mutant.name:{width}}  {outcome.mutant.package:16}  {outcome.verdict:8}  {outcome.detail}")
    count = {v: sum(outcome.verdict == v for outcome in outcomes) for v in (CAUGHT, SURVIVED, ERROR)}
    print(f"\nmutants: {count[CAUGHT]} caught, {count[SURVIVED]} survived, {count[ERROR]} could not be tried")
    return 0 if count[CAUGHT] == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
