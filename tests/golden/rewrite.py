"""Rewrite the golden curves: `python -m tests.golden.rewrite [RUN ...]`. Read the difference before you commit it."""

import sys
import tempfile
from pathlib import Path

from tests import toy
from tests.golden.curves import RUNS, curve, file, write


def main(runs: list[str]) -> int:
    """Rewrite the curves named, or all."""
    unknown = [run for run in runs if run not in RUNS]
    if unknown:
        print(f"No golden run {', '.join(unknown)}; known are {', '.join(RUNS)}.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        world = toy.world(Path(folder))
        for run in runs or RUNS:
            before = file(run).read_text(encoding="utf-8") if file(run).is_file() else ""
            write(run, curve(run, world))
            same = file(run).read_text(encoding="utf-8") == before
            print(f"{run}: {'as it was' if same else 'rewritten'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
