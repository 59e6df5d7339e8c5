#!/usr/bin/env python3
"""A real meshd with 10,000 services of 10 endpoints: how soon it starts, what it weighs, how soon a changed route is live.

    cargo build --release --bins
    benches/many-services/run.py [--binaries target/release] [--services 10000] [--endpoints 10] [--write docs/benchmarks.md]

One host: control plane and data plane in one process, as `meshd init` makes it. Every service is a ServiceEntry with
its endpoints, a VirtualService of two routes and a DestinationRule of one subset, put in by `meshctl apply`. Then meshd is
stopped and started again: *ready* is when it tells systemd so (NOTIFY_SOCKET), *answers* when a request comes back through
it. A changed route is live when a request sees it; that is counted from the start of `meshctl apply`, so starting meshctl
is in it, and from when the change was sent to meshd's socket by this script, where it is not. Everything stays on loopback.
"""
import argparse
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from pages import put  # noqa: E402

MARK = "<!-- many services: made by benches/many-services/run.py -->"
OUTBOUND, BACKENDS = 22301, (22311, 22312)
DOCUMENTS_AT_ONCE = 900


def main():
    options = arguments()
    folder = tempfile.mkdtemp(prefix="many-services-", dir=options.folder)
    for port in BACKENDS:
        backend(port)
    host = Host(folder, os.path.abspath(options.binaries))
    try:
        text = measured(host, options)
    finally:
        host.stop()
        if options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print("\n" + text)
    if options.write:
        put(options.write, MARK, text)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", default="target/release", help="folder of meshd and meshctl")
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=10, help="of each service")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--changes", type=int, default=21)
    parser.add_argument("--folder", help="where the data folder is made; fsync counts for a change. Default: the system's")
    parser.add_argument("--keep", action="store_true", help="keep the folder with data and logs")
    parser.add_argument("--write", help="file whose table is replaced")
    return parser.parse_args()


def measured(host, options):
    host.run_daemon()
    host.meshctl("apply", "-f", "-", feed=backend_rules(0))
    begun = time.monotonic()
    documents = [document for number in range(options.services) for document in service(number, options.endpoints)]
    for begin in range(0, len(documents), DOCUMENTS_AT_ONCE):
        host.meshctl("apply", "-f", "-", feed="\n---\n".join(documents[begin:begin + DOCUMENTS_AT_ONCE]))
    print(f"applied in {time.monotonic() - begun:.1f} s; {memory(host)} MB", flush=True)
    host.stop()

    ready, answers, cpu = [], [], []
    for number in range(options.starts):
        times = host.run_daemon()
        ready.append(times[0])
        answers.append(times[1])
        cpu.append(times[2])
        print(f"start {number}: ready {times[0]:.2f} s, answers {times[1]:.2f} s, CPU {times[2]:.2f} s", flush=True)
        if number + 1 < options.starts:
            host.stop()
    time.sleep(5)
    started = memory(host)
    by_meshctl, by_socket = [], []
    for number in range(2 * options.changes):
        before, times = (number % 2, by_meshctl) if number < options.changes else (number % 2, by_socket)
        times.append(changed(host, before, direct=times is by_socket))
    time.sleep(5)
    afterwards = memory(host)
    rows = [
        ("start until ready", "s", spread(ready, 2), "1.5"),
        ("start until a request is answered", "s", spread(answers, 2), "1.5"),
        ("CPU time until then", "s", spread(cpu, 2), ""),
        ("memory, 5 s after the start (peak)", "MB", started, "150"),
        ("memory after the changes (peak)", "MB", afterwards, ""),
        ("one route changed by `meshctl apply` and seen by a request", "ms", spread(by_meshctl, 1), ""),
        ("the same without starting `meshctl`", "ms", spread(by_socket, 1), "20"),
    ]
    lines = ["| what | unit | median (least–most) | bar |", "|---|---|--:|--:|"]
    lines += [f"| {what} | {unit} | {figure} | {bar} |" for what, unit, figure, bar in rows]
    return "\n".join(lines) + "\n"


def spread(figures, digits):
    least, most = min(figures), max(figures)
    return f"{statistics.median(figures):.{digits}f} ({least:.{digits}f}–{most:.{digits}f})"


def memory(host):
    """Resident memory and its peak, in MB: what is the process's own, files it has mapped by their share."""
    with open(f"/proc/{host.process.pid}/smaps_rollup") as maps:
        pss = next(int(line.split()[1]) for line in maps if line.startswith("Pss:"))
    with open(f"/proc/{host.process.pid}/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return f"{pss / 1024:.0f} ({peak / 1024:.0f})"


def changed(host, before, direct):
    """Changes the route of `backend` and asks until the other backend answers; in milliseconds."""
    assert host.ask() == BACKENDS[before]
    rules = route(1 - before)
    begun = time.monotonic()
    if direct:
        host.apply(rules)
    else:
        applying = subprocess.Popen([*host.hand, "apply", "--no-wait", "-f", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        applying.stdin.write(rules)
        applying.stdin.close()
    while host.ask() != BACKENDS[1 - before]:
        if time.monotonic() > begun + 10:
            raise RuntimeError("the changed route is not live after 10 s")
    took = (time.monotonic() - begun) * 1e3
    if direct:
        host.applied()
    elif applying.wait():
        raise RuntimeError("meshctl apply failed")
    return took


# ---- what is in the mesh ---------------------------------------------------------------------------------------------

def service(number, endpoints):
    """The documents of one service: its endpoints, its routes, its policy."""
    host = f"s{number}.example.test"
    listed = "\n".join(
        f"  - {{address: 198.18.{number * endpoints + at >> 8 & 255}.{number * endpoints + at & 255}, "
        f"labels: {{version: v{1 + at % 2}}}}}" for at in range(endpoints))
    head = "apiVersion: networking.istio.io/v1\nkind: {}\nmetadata: {{name: s{}}}\nspec:\n"
    return [
        head.format("ServiceEntry", number) + f"  hosts: [{host}]\n  location: MESH_EXTERNAL\n  resolution: STATIC\n"
        f"  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  endpoints:\n{listed}\n",
        head.format("VirtualService", number) + f"""  hosts: [{host}]
  http:
  - match: [{{uri: {{prefix: /v2}}, headers: {{end-user: {{exact: jason}}}}}}]
    route: [{{destination: {{host: {host}}}}}]
    timeout: 2s
  - route:
    - {{destination: {{host: {host}, subset: v1}}, weight: 90}}
    - {{destination: {{host: {host}}}, weight: 10}}
""",
        head.format("DestinationRule", number) + f"""  host: {host}
  trafficPolicy: {{outlierDetection: {{consecutive5xxErrors: 5}}}}
  subsets: [{{name: v1, labels: {{version: v1}}}}]
""",
    ]


def backend_rules(chosen):
    """The service that is asked, whose route leads to one of the two backends."""
    return f"""apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: backend}}
spec:
  hosts: [backend.test]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:
  - {{address: 127.0.0.1, ports: {{http: {BACKENDS[0]}}}, labels: {{version: v0}}}}
  - {{address: 127.0.0.1, ports: {{http: {BACKENDS[1]}}}, labels: {{version: v1}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: backend}}
spec:
  host: backend.test
  subsets: [{{name: v0, labels: {{version: v0}}}}, {{name: v1, labels: {{version: v1}}}}]
---
{route(chosen)}"""


def route(chosen):
    return f"""apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: backend}}
spec:
  hosts: [backend.test]
  http: [{{route: [{{destination: {{host: backend.test, subset: v{chosen}}}}}]}}]
"""


def backend(port):
    """Answers every request with its port."""
    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            # In one piece: two would wait for each other, by Nagle's rule.
            body = str(port)
            self.wfile.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())

        def log_message(self, *_):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()


# ---- the host --------------------------------------------------------------------------------------------------------

class Host:
    """One meshd, its data folder, and a connection through it."""

    def __init__(self, folder, binaries):
        self.folder, self.binaries, self.process, self.asking = folder, binaries, None, None
        self.hand = (f"{binaries}/meshctl", "--socket", f"{folder}/meshd.sock")
        os.makedirs(f"{folder}/services.d")
        with open(f"{folder}/meshd.toml", "w") as file:
            file.write(f"""[host]
name = "near"
data = "{folder}/data"
[listen]
mesh = "127.0.7.1:15008"
socket = "{folder}/meshd.sock"
outbound = []
inbound = []
admin = ""
metrics = []
dns = []
http_proxy = ""
[intercept]
mode = "off"
[proxy]
workers = 1
[services]
directory = "{folder}/services.d"
[[listener]]
address = "127.0.0.1:{OUTBOUND}"
service_port = 80
""")
        run(f"{binaries}/meshd", "init", "--config", f"{folder}/meshd.toml")

    def run_daemon(self):
        """Starts meshd; seconds until it is ready, until it answers, and of CPU until then."""
        path = f"{self.folder}/notify"
        if os.path.exists(path):
            os.unlink(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, open(f"{self.folder}/meshd.log", "ab") as log:
            told.bind(path)
            told.settimeout(60)
            begun = time.monotonic()
            self.process = subprocess.Popen([f"{self.binaries}/meshd", "run", "--config", f"{self.folder}/meshd.toml"], stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, env={**os.environ, "NOTIFY_SOCKET": path})
            while b"READY=1" not in told.recv(4096):
                pass
            ready = time.monotonic() - begun
        while True:
            try:
                self.ask()
                break
            except (OSError, http.client.HTTPException, ValueError):
                self.asking = None
                if time.monotonic() > begun + 60 or self.process.poll() is not None:
                    raise
                # The first start knows no rules yet.
                if not os.path.exists(f"{self.folder}/asked"):
                    open(f"{self.folder}/asked", "w").close()
                    break
                time.sleep(0.005)
        return ready, time.monotonic() - begun, self.cpu()

    def cpu(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self):
        """The port of the backend that a request gets to."""
        if self.asking is None:
            self.asking = http.client.HTTPConnection("127.0.0.1", OUTBOUND, timeout=5)
        self.asking.request("GET", "/", headers={"host": "backend.test"})
        return int(self.asking.getresponse().read())

    def stop(self):
        self.asking = None
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def meshctl(self, *command, feed=None):
        return run(*self.hand, *command, feed=feed)

    def apply(self, rules):
        """Sends one changed VirtualService to meshd's socket, as meshctl does, without waiting for the answer."""
        host, chosen = "backend.test", rules.rpartition("subset: ")[2].partition("}")[0]
        destination = {"host": host, "subset": chosen}
        key = "VirtualService default/backend"
        thing = {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "backend", "namespace": "default"},
                 "spec": {"hosts": [host], "http": [{"route": [{"destination": destination}]}]}}
        batch = {"changes": [{"key": key, "object": thing}], "reason": "many-services"}
        body = json.dumps({"apply": {"batch": batch, "dry_run": False, "strict": False, "key": f"key-{time.monotonic_ns()}"}})
        self.sent = socket.socket(socket.AF_UNIX)
        self.sent.connect(f"{self.folder}/meshd.sock")
        self.sent.sendall(f"POST /v1/call HTTP/1.1\r\nhost: meshd\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())

    def applied(self):
        """Waits for the answer to `apply`."""
        answer = b""
        while piece := self.sent.recv(65536):
            answer += piece
        self.sent.close()
        if b"applied" not in answer:
            raise RuntimeError(f"not applied: {answer!r}")


def run(*command, feed=None):
    done = subprocess.run(command, input=feed, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
