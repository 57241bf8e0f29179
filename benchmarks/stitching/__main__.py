"""Stitching compared: slidesam, the plain IoU rule and the peers on the very same per-block labels.

python -m benchmarks.stitching accuracy     what each method makes of every scene, against the truth
python -m benchmarks.stitching speed        seconds on large confluent slides, beside what two processes can do at best
python -m benchmarks.stitching memory       peak memory of slidesam's processes as slides grow
"""

from __future__ import annotations

import argparse

from benchmarks.stitching import accuracy, memory, speed

_COMMANDS = {"accuracy": accuracy, "speed": speed, "memory": memory}


def main() -> None:
    """Runs the command that is named."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stitching",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in _COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run_command)
    chosen = parser.parse_args()
    chosen.run(chosen)


if __name__ == "__main__":
    main()
