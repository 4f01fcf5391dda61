#!/usr/bin/env python3
"""Runs the stages of `make test` one after another and compares what each takes with its time budget.

A stage is a target of the Makefile. Its output is passed through. A stage that fails does not stop the others, except
those that need it. A stage may take as long as it makes progress: a slow machine is not a bug, so a stage over its budget
is reported and does not fail. A stage that makes no progress for a quarter of an hour hangs and is killed. Progress is
output, or a new file where compilers and downloads put theirs, since they may be silent for a long time.

Exit status: 0 when every stage passed, else 1.
"""

import codecs
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[1]
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")

# Far more than one crate, one Go package or one test takes on a slow machine.
SILENCE_S = 15 * 60
# Where builds put new files: cargo, Go's compiler, and what the Makefile keeps.
WATCHED = (
    pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target"),
    pathlib.Path(os.environ.get("GOCACHE") or CACHE / "go-build"),
    CACHE / "disagg",
)
# How deep to look below these folders: to target/ci/deps, and to the 256 folders of Go's cache.
WATCHED_DEPTH = 2


@dataclass(frozen=True)
class Stage:
    verb: str
    # Minutes it may take on a machine with 2 cores and nothing built.
    budget_min: float
    # Stages that must have passed before it can run.
    needs: tuple = ()


# Both builds take 25 minutes, Kubernetes and helm 12, unit tests 5, everything on real processes and clusters 16: less than
# the hour that the whole may take.
STAGES = (
    Stage("lint", 8),
    Stage("build", 17),
    Stage("unit", 5, needs=("build",)),
    Stage("cluster", 11),
    Stage("chart", 1, needs=("cluster",)),
    Stage("e2e", 14, needs=("build", "cluster")),
    Stage("clients", 2, needs=("build",)),
)
TOTAL_MIN = 60


@dataclass(frozen=True)
class Result:
    stage: Stage
    outcome: str
    seconds: float

    @property
    def passed(self):
        return self.outcome == "passed"


class Progress:
    """When a stage last made progress."""

    def __init__(self, folders):
        self.folders = folders
        self.files = newest_file(folders)
        self.seen_at = time.monotonic()

    def seen(self):
        self.seen_at = time.monotonic()

    def silent_s(self):
        """Seconds since the last output or new file."""
        files = newest_file(self.folders)
        if files != self.files:
            self.files = files
            self.seen()
        return time.monotonic() - self.seen_at


def newest_file(folders):
    """When a file was last created, renamed or removed in or just below one of these folders, in nanoseconds."""
    newest, level = 0, [str(folder) for folder in folders]
    for depth in range(WATCHED_DEPTH + 1):
        below = []
        for folder in level:
            try:
                newest = max(newest, os.stat(folder).st_mtime_ns)
                if depth < WATCHED_DEPTH:
                    with os.scandir(folder) as entries:
                        below += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            except OSError:
                # Builds also remove folders.
                continue
        level = below
    return newest


def pass_on(stream, progress, out):
    """Copies a stage's output as it arrives, until no process holds the other end."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with stream:
        while chunk := os.read(stream.fileno(), 1 << 16):
            progress.seen()
            out.write(decoder.decode(chunk))
            out.flush()


def run_stage(stage, command, out, silence_s=SILENCE_S, watched=WATCHED):
    """Runs one stage's command and returns a `Result`. Its process group is killed when it ends, and when we do."""
    print(f"\n==> {stage.verb}", file=out, flush=True)
    start = time.monotonic()
    progress = Progress(watched)
    # Behind a pipe, cargo cannot see the terminal.
    colour = {"CARGO_TERM_COLOR": "always"} if out.isatty() else {}
    process = subprocess.Popen(
        command, cwd=ROOT, env=colour | os.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    printer = threading.Thread(target=pass_on, args=(process.stdout, progress, out), daemon=True)
    printer.start()
    try:
        outcome = wait(process, progress, silence_s)
    finally:
        end_group(process)
        # A process that left the group may keep the pipe open for ever.
        printer.join(timeout=5)
    if outcome == "HUNG":
        print(f"==> {stage.verb}: ended, since it made no progress for {silence_s:.0f} s", file=out, flush=True)
    return Result(stage, outcome, time.monotonic() - start)


def wait(process, progress, silence_s):
    """The outcome of a stage that has ended or hung."""
    while True:
        try:
            return "passed" if process.wait(timeout=min(5, silence_s / 10)) == 0 else "FAILED"
        except subprocess.TimeoutExpired:
            if progress.silent_s() > silence_s:
                return "HUNG"


def end_group(process):
    """Ends whatever is left of the group of `process`, first with SIGTERM."""
    for number, patience_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            continue


def clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def table(results):
    """The closing table, as lines."""
    lines = ["", f"{'stage':8} {'outcome':10} {'time':>6} {'budget':>7}"]
    for result in results:
        budget_s = result.stage.budget_min * 60
        over = "  over budget" if result.seconds > budget_s else ""
        lines.append(f"{result.stage.verb:8} {result.outcome:10} {clock(result.seconds):>6} {clock(budget_s):>7}{over}")
    total_s, budget_s = sum(r.seconds for r in results), sum(r.stage.budget_min for r in results) * 60
    outcome = "passed" if all(r.passed for r in results) else "FAILED"
    over = "  over budget" if total_s > budget_s else ""
    lines.append(f"{'total':8} {outcome:10} {clock(total_s):>6} {clock(budget_s):>7}{over}")
    return lines


def run_all(stages, command_of, out=sys.stdout, **limits):
    """Runs all stages, prints the table, and returns the exit status. `limits` are those of `run_stage`."""
    results = []
    for stage in stages:
        failed = {result.stage.verb for result in results if not result.passed}
        if failed & set(stage.needs):
            results.append(Result(stage, "not run", 0.0))
        else:
            results.append(run_stage(stage, command_of(stage), out, **limits))
    print("\n".join(table(results)), file=out, flush=True)
    return 0 if all(result.passed for result in results) else 1


def stop(number, _frame):
    raise SystemExit(128 + number)


if __name__ == "__main__":
    # A SIGTERM also ends the running stage, through the `finally` above.
    signal.signal(signal.SIGTERM, stop)
    sys.exit(run_all(STAGES, lambda stage: ["make", "--no-print-directory", stage.verb]))
