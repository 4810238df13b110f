"""The command; see the package."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.attribution.play import play
from bench.attribution.scenes import SCENES
from bench.attribution.table import render_lines, render_markdown, write_readme

_README = Path(__file__).parents[2] / "README.md"


def main() -> None:
    """Plays the scenes and prints how right the answers are; exits with 1 where one is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m bench.attribution")
    parser.add_argument("--seconds", type=float, default=60, help="length of the measured range")
    parser.add_argument("--only", metavar="NAME", action="append", choices=SCENES, help="this scene; repeatable")
    parser.add_argument("--markdown", action="store_true", help="print the table of the README")
    parser.add_argument("--write-readme", action="store_true", help="put it into README.md, between its markers")
    options = parser.parse_args()
    chosen = [(name.replace("_", "-"), SCENES[name]) for name in options.only or SCENES]
    with tempfile.TemporaryDirectory() as folder:
        scores = play(chosen, options.seconds, Path(folder))
    table = render_markdown(scores, options.seconds)
    print(table if options.markdown else render_lines(scores))
    if options.write_readme:
        write_readme(_README, table)
    raise SystemExit(any(score.failures for score in scores))


if __name__ == "__main__":
    main()
