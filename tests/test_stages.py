"""Tests of stages.py with stages that are small shell commands."""

import io
import pathlib
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import stages  # noqa: E402
from stages import Stage  # noqa: E402


class Stages(unittest.TestCase):
    def run_all(self, *stages_and_commands):
        """(exit status, outcomes by verb, the table) of stages given with their shell commands."""
        commands = {stage.verb: ["sh", "-c", command] for stage, command in stages_and_commands}
        out = io.StringIO()
        status = stages.run_all([stage for stage, _ in stages_and_commands], lambda s: commands[s.verb], out)
        rows = [line.split() for line in out.getvalue().splitlines() if line and not line.startswith("==>")]
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

    def test_a_stage_that_hangs_is_ended_with_all_its_children(self):
        start = time.monotonic()
        status, outcomes, _ = self.run_all((Stage("hung", 0.1 / 60), "sleep 600 & sleep 600"))
        self.assertEqual((status, outcomes["hung"]), (1, "HUNG"))
        self.assertLess(time.monotonic() - start, 15)


if __name__ == "__main__":
    unittest.main()
