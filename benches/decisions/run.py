#!/usr/bin/env python3
"""Instructions that one decision of the request path takes: they are the same on a busy machine as on an idle one.

    cargo build --release --example decide -p mesh-core
    benches/decisions/run.py [--only pick-maglev] [--program target/release/examples/decide] [--write docs/benchmarks.md]

Needs valgrind. Each decision is made N and 3 N times under cachegrind; the difference leaves out what prepares it. The
nanoseconds that are printed beside them are those of an ordinary run, which other work disturbs: they are not written down.
"""
import argparse
import os
import re
import subprocess
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from pages import put  # noqa: E402

COUNT = 2_000
MARK = "<!-- decisions: made by benches/decisions/run.py -->"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="decisions whose names begin so")
    parser.add_argument("--program", default="target/release/examples/decide")
    parser.add_argument("--write", help="file whose table is replaced")
    options = parser.parse_args()
    times = subprocess.run([options.program], capture_output=True, text=True, check=True).stdout
    rows = []
    for name, nanos in re.findall(r"^(\S+)\s+([\d.]+) ns$", times, re.M):
        if name.startswith(options.only):
            each = (instructions(options.program, name, 3 * COUNT) - instructions(options.program, name, COUNT)) / (2 * COUNT)
            print(f"{name:24} {each:8.0f} instructions  {nanos:>8} ns", flush=True)
            rows.append(f"| `{name}` | {each:.0f} |")
    if options.write:
        put(options.write, MARK, "\n".join(["| decision | instructions |", "|---|--:|", *rows]) + "\n")


def instructions(program, name, count):
    """All instructions of a run, what prepares it included."""
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", program, name, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(re.search(r"I\s+refs:\s+([\d,]+)", done.stderr).group(1).replace(",", ""))


if __name__ == "__main__":
    main()
