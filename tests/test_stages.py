"""Tests of stages.py with stages that are small shell commands."""

import io
import pathlib
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import stages  # noqa: E402
from stages import Stage  # noqa: E402


class Stages(unittest.TestCase):
    def run_all(self, *stages_and_commands, silence_s=60, watched=()):
        """(exit status, outcomes by verb, all that was printed) of stages given with their shell commands."""
        commands = {stage.verb: ["sh", "-c", command] for stage, command in stages_and_commands}
        out = io.StringIO()
        status = stages.run_all([stage for stage, _ in stages_and_commands], lambda s: commands[s.verb], out, silence_s=silence_s, watched=watched)
        table = out.getvalue().split("\nstage ", 1)[1]
        rows = [line.split() for line in f"stage {table}".splitlines()]
        return status, {row[0]: row[1] for row in rows[1:]}, out.getvalue()

    def test_the_budgets_fit_into_the_hour(self):
        self.assertLessEqual(sum(stage.budget_min for stage in stages.STAGES), stages.TOTAL_MIN)

    def test_all_pass(self):
        status, outcomes, _ = self.run_all((Stage("a", 1), "true"), (Stage("b", 1), "true"))
        self.assertEqual((status, outcomes), (0, {"a": "passed", "b": "passed", "total": "passed"}))

    def test_a_failure_is_told_and_stops_only_what_needs_it(self):
        status, outcomes, _ = self.run_all(
            (Stage("lint", 1), "exit 3"), (Stage("build", 1), "exit 1"), (Stage("unit", 1, needs=("build",)), "true"),
            (Stage("other", 1, needs=()), "true"),
        )
        self.assertEqual(status, 1)
        self.assertEqual(outcomes, {"lint": "FAILED", "build": "FAILED", "unit": "not", "other": "passed", "total": "FAILED"})

    def test_over_budget_is_shown_and_not_failed(self):
        status, outcomes, printed = self.run_all((Stage("slow", 0.6 / 60), "sleep 0.8"))
        self.assertEqual((status, outcomes["slow"]), (0, "passed"))
        self.assertIn("over budget", printed)

    def test_output_passes_through_whole_and_in_order(self):
        _, _, printed = self.run_all((Stage("loud", 1), "echo one; echo two >&2; printf 'drei \\303\\244'"))
        self.assertIn("one\ntwo\ndrei ä", printed)

    def test_a_stage_that_hangs_is_ended_with_all_its_children(self):
        start = time.monotonic()
        status, outcomes, printed = self.run_all((Stage("hung", 1), "sleep 600 & sleep 600"), silence_s=0.3)
        self.assertEqual((status, outcomes["hung"]), (1, "HUNG"))
        self.assertIn("hung: ended, since it made no progress", printed)
        self.assertLess(time.monotonic() - start, 15)

    # Below, a stage takes many times its budget and more than the longest silence allowed, and must pass. It makes progress
    # every 0.1 s; a silence of 2 s can only come from a very busy machine.
    def test_a_stage_that_prints_goes_on(self):
        count = "for i in $(seq 25); do echo $i; sleep 0.1; done"
        status, outcomes, _ = self.run_all((Stage("slow", 0.1 / 60), count), silence_s=2)
        self.assertEqual((status, outcomes["slow"]), (0, "passed"))

    def test_a_silent_stage_that_makes_files_goes_on(self):
        with tempfile.TemporaryDirectory() as folder:
            deps = pathlib.Path(folder) / "ci" / "deps"
            deps.mkdir(parents=True)
            make = f"for i in $(seq 25); do : > {deps}/$i; sleep 0.1; done"
            limits = {"silence_s": 2, "watched": (pathlib.Path(folder), pathlib.Path("/nonexistent"))}
            status, outcomes, _ = self.run_all((Stage("slow", 0.1 / 60), make), **limits)
            self.assertEqual((status, outcomes["slow"]), (0, "passed"))
            status, outcomes, _ = self.run_all((Stage("elsewhere", 1), "sleep 600"), **limits)
            self.assertEqual((status, outcomes["elsewhere"]), (1, "HUNG"))

    def test_what_a_stage_leaves_behind_holds_nobody_up(self):
        start = time.monotonic()
        status, outcomes, _ = self.run_all((Stage("daemon", 1), "setsid sleep 20 & true"))
        self.assertEqual((status, outcomes["daemon"]), (0, "passed"))
        self.assertLess(time.monotonic() - start, 15)


if __name__ == "__main__":
    unittest.main()
