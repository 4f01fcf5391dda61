#!/usr/bin/env python3
"""Runs the stages of `make test` one after another and holds each to its time budget.

A stage is a verb of the Makefile. Its output goes straight through. One that fails does not stop the others, except
those that need it. One that runs for twice its budget is ended: something hangs. Over budget alone is shown, not
failed, since a slow machine is nobody's bug.

Exit status: 0 when every stage passed, else 1.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Stage:
    verb: str
    # Minutes it may take on a machine with 2 cores and nothing built.
    budget_min: float
    # Stages without which it makes no sense.
    needs: tuple = ()


# Both builds 25 minutes, Kubernetes and helm 12, unit tests 5, everything on real processes and clusters 16: below the
# hour that the whole may take.
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


def run_stage(stage, command, limit_s, out):
    """Runs one stage's command; `Result`. Its process group dies with it, and with us."""
    print(f"\n==> {stage.verb}", file=out, flush=True)
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        outcome = "passed" if process.wait(timeout=limit_s) == 0 else "FAILED"
    except subprocess.TimeoutExpired:
        outcome = "HUNG"
        print(f"==> {stage.verb}: ended after {limit_s:.0f} s, twice its budget", file=out, flush=True)
    finally:
        end_group(process)
    return Result(stage, outcome, time.monotonic() - start)


def end_group(process):
    """Ends whatever is left of the group of `process`, first kindly."""
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


def run_all(stages, command_of, out=sys.stdout):
    """Runs all stages, prints the table, and gives the exit status."""
    results = []
    for stage in stages:
        failed = {result.stage.verb for result in results if not result.passed}
        if failed & set(stage.needs):
            results.append(Result(stage, "not run", 0.0))
        else:
            results.append(run_stage(stage, command_of(stage), stage.budget_min * 60 * 2, out))
    print("\n".join(table(results)), file=out, flush=True)
    return 0 if all(result.passed for result in results) else 1


def stop(number, _frame):
    raise SystemExit(128 + number)


if __name__ == "__main__":
    # A SIGTERM ends the stage under way too, through the `finally` above.
    signal.signal(signal.SIGTERM, stop)
    sys.exit(run_all(STAGES, lambda stage: ["make", "--no-print-directory", stage.verb]))
