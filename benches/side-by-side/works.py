"""The works: shapes of traffic, each with its backend and its load, and what one run of a load gave."""
import functools
import os
import re
import resource
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass

from machine import LOAD_CORE, cpu_seconds, family, rss_kib, start, wait_port

BODY = "0123456789" * 20
GIB = 1 << 30


@dataclass(frozen=True)
class Work:
    """What is carried, how, and how a figure of it is called."""
    name: str
    title: str
    protocol: str            # http, grpc, tcp
    load: str                # requests, grpc, bulk, churn, idle; rate, grpc-rate: at a fixed rate, the figure is a latency
    mtls: bool = False       # two hops with mutual TLS between them
    hosts: int = 1           # services with a route table of their own
    plain: bool = False      # one prefix route each, in place of a header match with a split before it
    per_second: int = 0      # requests, where the rate is fixed
    shape: tuple = (32, 1)   # connections, streams each
    unit: str = "CPU µs/request"
    v1: tuple = (21080, 21081)  # ports of the backends
    v2: tuple = (21082,)
    prefix: str = "/api/"


GRPC = {"protocol": "grpc", "load": "grpc", "v1": (21090, 21091), "v2": (21092,), "prefix": "/echo.Echo/"}
WORKS = [
    Work("http", "one hop, HTTP/1.1, header match and 90/10 split", "http", "requests"),
    Work("http-100", "the same among 100 services", "http", "requests", hosts=100),
    Work("http-10000", "the same among 10,000 services", "http", "requests", hosts=10_000),
    Work("plain-1", "one hop, HTTP/1.1, one prefix route", "http", "requests", plain=True),
    Work("plain-100", "the same among 100 services with a route each", "http", "requests", plain=True, hosts=100),
    Work("plain-10000", "the same among 10,000 services with a route each", "http", "requests", plain=True, hosts=10_000),
    Work("grpc-1x32", "one hop, gRPC-shaped HTTP/2, 1 connection of 32 streams", shape=(1, 32), **GRPC),
    Work("grpc-8x16", "one hop, gRPC-shaped HTTP/2, 8 connections of 16 streams", shape=(8, 16), **GRPC),
    Work("http-mtls", "two hops with mTLS, HTTP/1.1 client", "http", "requests", mtls=True),
    Work("grpc-mtls", "two hops with mTLS, gRPC-shaped, 8 connections of 16 streams", mtls=True, shape=(8, 16), **GRPC),
    Work("http-rate", "one hop, HTTP/1.1, 4,000 requests/s on 32 connections, from when each was due", "http", "rate", unit="p99 µs",
         per_second=4_000),
    Work("grpc-rate", "one hop, gRPC-shaped, 8,000 requests/s on 8 connections", unit="p99 µs", shape=(8, 16), per_second=8_000,
         **{**GRPC, "load": "grpc-rate"}),
    Work("tcp-1", "TCP over two hops with mTLS, 1 connection", "tcp", "bulk", mtls=True, shape=(1, 1), unit="CPU s/GB"),
    Work("tcp-4", "TCP over two hops with mTLS, 4 connections", "tcp", "bulk", mtls=True, shape=(4, 1), unit="CPU s/GB"),
    Work("churn-mtls", "a new connection for each request, TCP over two hops with mTLS", "tcp", "churn", mtls=True),
    Work("idle", "10,000 idle HTTP/1.1 connections", "http", "idle", unit="KiB/connection"),
    Work("idle-mtls", "10,000 idle HTTP/1.1 connections, two hops with mTLS (source + destination)", "http", "idle", mtls=True, unit="KiB/connection"),
    Work("idle-tcp-mtls", "10,000 idle TCP connections, two hops with mTLS (source + destination)", "tcp", "idle", mtls=True, unit="KiB/connection"),
]


@dataclass
class Run:
    """What one run gave."""
    figure: float            # in the work's unit
    rate: float = 0.0        # requests (or MB) per second
    p50: float = 0.0         # ms
    p99: float = 0.0         # ms
    rss: int = 0             # KiB, under load
    sides: tuple = ()        # the figure of each proxy on the way, where it is the sum of two
    cpu: float = 0.0         # µs per request, where the figure is something else


def backends(folder):
    """nginx with a body of 200 bytes (and a big file), nghttpd for gRPC's shape."""
    os.makedirs(folder + "/www/echo.Echo", exist_ok=True)
    with open(folder + "/www/echo.Echo/Say", "w") as file:
        file.write("y" * 105)
    with open(folder + "/www/big", "wb") as file:
        file.truncate(GIB)
    with open(folder + "/nginx.conf", "w") as file:
        file.write(f"""worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.err warn; worker_rlimit_nofile 20000;
events {{ worker_connections 18000; }}
http {{ access_log off; keepalive_timeout 3600s; keepalive_requests 100000000; sendfile on; default_type text/plain;
 client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3; uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
 server {{ listen 127.0.0.1:21080 backlog=4096; listen 127.0.0.1:21081 backlog=4096; listen 127.0.0.1:21082 backlog=4096; root {folder}/www;
  location = /big {{ }}
  location = /v1/traces {{ return 200; }}
  location / {{ return 200 "{BODY}"; }} }} }}
""")
    started = [start("nginx", folder, "nginx", "-p", folder, "-c", folder + "/nginx.conf", "-g", "daemon off;", core=LOAD_CORE)]
    for port in (21090, 21091, 21092):
        started.append(start(f"nghttpd-{port}", folder, "nghttpd", "--no-tls", "-a", "127.0.0.1", "-n1", "--trailer", "grpc-status: 0",
                             "--max-concurrent-streams=1000", "-d", folder + "/www", str(port), core=LOAD_CORE))
    for port in (21080, 21081, 21082, 21090, 21091, 21092):
        wait_port(port)
    return started


def measure(work, target, seconds):
    """One run of the work's load; a second of warm-up first."""
    pids = family(target.processes)
    if work.load == "idle":
        return idle(target)
    if work.load == "bulk":
        return bulk(work, target, pids)
    load = {"requests": wrk, "churn": wrk, "grpc": h2load, "rate": timetable, "grpc-rate": h2load}[work.load]
    load(work, target, 1)
    before = cpu_seconds(pids)
    memory = []
    timer = threading.Timer(seconds / 2, lambda: memory.append(rss_kib(pids)))
    timer.start()
    count, run = load(work, target, seconds)
    timer.join()
    run.cpu = (cpu_seconds(pids) - before) * 1e6 / count
    run.figure = run.p99 * 1e3 if work.per_second else run.cpu
    run.rss = memory[0]
    return run


def call(*command):
    return subprocess.run(["taskset", "-c", LOAD_CORE, *command], capture_output=True, text=True, check=True).stdout


def milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]


def wrk(work, target, seconds):
    close = ["-H", "Connection: close"] if work.load == "churn" else []
    out = call("wrk", "-t1", f"-c{work.shape[0]}", f"-d{seconds}s", "--latency", "-H", f"Host: {target.host}", "-H", "x-user: beta",
               *close, f"http://127.0.0.1:{target.port}/api/x")
    if "Non-2xx" in out or (work.load != "churn" and "Socket errors" in out):
        raise RuntimeError(f"{target.name}: requests failed:\n{out}")
    count = int(re.search(r"(\d+) requests in", out).group(1))
    tails = dict(re.findall(r"(\d+)%\s+([\d.]+(?:us|ms|s))", out))
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1))
    return count, Run(0, rate, milliseconds(tails["50"]), milliseconds(tails["99"]))


def h2load(work, target, seconds):
    connections, streams = work.shape
    rate = [f"--rps={work.per_second // connections}"] if work.per_second else []
    with tempfile.NamedTemporaryFile() as body, tempfile.TemporaryDirectory() as folder:
        body.write(b"x" * 105)
        body.flush()
        out = call("h2load", "-t1", f"-c{connections}", f"-m{streams}", *rate, "-D", str(seconds), "--log-file", folder + "/log",
                   "-H", "content-type: application/grpc", "-H", "te: trailers", "-H", "x-user: beta", "-H", f":authority: {target.host}",
                   "-d", body.name, f"http://127.0.0.1:{target.port}/echo.Echo/Say")
        with open(folder + "/log") as lines:
            latencies = [int(line.split("\t")[2]) for line in lines]
    good = int(re.search(r"status codes: (\d+) 2xx", out).group(1))
    if "0 5xx" not in out or not good:
        raise RuntimeError(f"{target.name}: requests failed:\n{out}")
    return good, Run(0, good / seconds, *percentiles(latencies))


def timetable(work, target, seconds):
    """HTTP/1.1 at a fixed rate, by `rate.rs`."""
    out = call(generator(), str(target.port), target.host, "/api/x", str(work.per_second), str(work.shape[0]), str(seconds), "x-user: beta")
    latencies = [int(line) for line in out.split()]
    return len(latencies), Run(0, len(latencies) / seconds, *percentiles(latencies))


@functools.cache
def generator():
    """`rate.rs`, compiled."""
    program = os.path.join(tempfile.mkdtemp(prefix="side-by-side-rate-"), "rate")
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rate.rs")
    subprocess.run(["rustc", "--edition", "2024", "-O", "-o", program, source], check=True)
    return program


def percentiles(latencies):
    """The median and the 99th percentile, in milliseconds, of latencies in microseconds."""
    latencies.sort()
    return latencies[len(latencies) // 2] / 1e3, latencies[len(latencies) * 99 // 100] / 1e3


def bulk(work, target, pids):
    """One GiB on each connection; the reader throws it away."""
    before, begun = cpu_seconds(pids), time.monotonic()
    readers = [subprocess.Popen(["taskset", "-c", LOAD_CORE, "curl", "-sf", "-o", "/dev/null", f"http://127.0.0.1:{target.port}/big"])
               for _ in range(work.shape[0])]
    time.sleep(1)
    memory = rss_kib(pids)
    if any(reader.wait() for reader in readers):
        raise RuntimeError(f"{target.name}: a download failed")
    gigabytes = work.shape[0] * GIB / 1e9
    return Run((cpu_seconds(pids) - before) / gigabytes, gigabytes * 1e3 / (time.monotonic() - begun), rss=memory)


def idle(target, count=10_000):
    """Keeps connections open after one request each; memory is read once it does not shrink any more."""
    # A connection takes two descriptors of a proxy.
    count = min(count, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 100)
    sides = [family([process]) for process in target.processes]
    before = [settled(side) for side in sides]
    request = f"GET /api/x HTTP/1.1\r\nHost: {target.host}\r\nx-user: beta\r\n\r\n".encode()
    held = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", target.port))
        connection.sendall(request)
        answer = b""
        while not answer.endswith(BODY.encode()):
            piece = connection.recv(4096)
            if not piece:
                raise RuntimeError(f"{target.name} closed a connection: {answer[:200]}")
            answer += piece
        held.append(connection)
    after = [settled(side) for side in sides]
    for connection in held:
        connection.close()
    grown = tuple((later - sooner) / count for later, sooner in zip(after, before))
    return Run(sum(grown), rss=sum(after), sides=grown if len(grown) > 1 else ())


def settled(pids, seconds=15):
    """Resident memory once it has not shrunk for three seconds, in KiB."""
    least, since, end = rss_kib(pids), time.monotonic(), time.monotonic() + seconds
    while time.monotonic() < min(since + 3, end):
        time.sleep(0.2)
        now = rss_kib(pids)
        if now < least:
            least, since = now, time.monotonic()
    return least
