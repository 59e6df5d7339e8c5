"""Processes under measurement: started in the background, counted by CPU time and memory, ended by pid."""
import os
import signal
import socket
import subprocess
import time

TICK = os.sysconf("SC_CLK_TCK")
# The proxy under test has a core of its own; the load and the backend share the other.
PROXY_CORE, LOAD_CORE = ("1", "0") if (os.cpu_count() or 1) > 1 else ("0", "0")
STARTED = []


def start(name, folder, *command, core=PROXY_CORE):
    """Starts a process bound to a core, its output in FOLDER/NAME.log."""
    with open(f"{folder}/{name}.log", "ab") as log:
        process = subprocess.Popen(["taskset", "-c", core, *command], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    STARTED.append(process)
    return process


def stop(processes):
    """Ends processes: asked first, then killed."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process in STARTED:
            STARTED.remove(process)


def family(processes):
    """The pids of processes and of their children (worker processes)."""
    pids = []
    for process in processes:
        pids.append(process.pid)
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
            pids += [int(child) for child in children.read().split()]
    return pids


def cpu_seconds(pids):
    """User and system time of whole processes, in seconds."""
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(") ", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def rss_kib(pids):
    """Resident memory, in KiB."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/status") as status:
            total += next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return total


def wait_port(port, seconds=30.0):
    """Waits until something listens on a loopback port."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"port {port} never opened")
