"""Seconds that `import slidesam` takes beside `import numpy, zarr`, each in fresh processes, in turns; the files are cached.

.venv/bin/python -m benchmarks.import_time [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

NAMES = "slidesam.Settings, slidesam.BlockGrid, slidesam.inspect, slidesam.open_result, slidesam.segment"
CODE = {
    "nothing": "",
    "numpy, zarr": "import numpy, zarr",
    "numpy, zarr, slidesam": "import numpy, zarr, slidesam",
    "and its names": f"import numpy, zarr, slidesam; {NAMES}",
    "and what computes": f"import numpy, zarr, slidesam; {NAMES}; import slidesam.attempts",
}


def measure(code: str) -> float:
    """Wall seconds of a fresh interpreter that runs these lines, its own start left out."""
    timed = f"import time; started = time.perf_counter()\n{code}\nprint(time.perf_counter() - started)"
    return float(subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in CODE}
    for _ in range(rounds + 1):
        for name, code in CODE.items():
            seconds[name].append(measure(code))
    for name, values in seconds.items():
        # The first round fills the cache.
        print(f"{name:22} {statistics.median(values[1:]):6.2f} s   (best {min(values[1:]):.2f})")


if __name__ == "__main__":
    main()
