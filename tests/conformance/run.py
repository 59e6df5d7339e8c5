#!/usr/bin/env python3
"""Runs the cases recorded from Envoy against a real meshd: those of SHARED, and ours in `cases/`.

    run.py SHARED [CASE ...]             SHARED holds conformance/; CASE may end in *
    run.py --record SHARED [CASE ...]    records `expected.json` of our cases anew from the envoy on the PATH
    MESHD, MESHCTL                       the binaries

The engine (backends, clients, comparison) is SHARED's. Cases that are not meant to pass yet are in `pending.txt`, each with its
reason; one of them that passes is an error, so that the list cannot lie. Exit 0 when every other case passes.
"""
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
OURS = HERE + "/cases"


def pending():
    with open(HERE + "/pending.txt") as file:
        lines = (line.split("#")[0].strip() for line in file)
        return {line.split(":")[0].strip() for line in lines if line}


def main():
    arguments = [a for a in sys.argv[1:] if a != "--record"]
    shared, names = arguments[0] + "/conformance", arguments[1:]
    if not os.path.exists(shared + "/verify.py"):
        print(f"conformance: SKIPPED: {shared} is not here, and holds the engine for our own cases too")
        return 1 if os.environ.get("CI") else 0
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        # The suite makes throw-away certificates beside itself: it gets a copy to do that in.
        suite = folder + "/conformance"
        shutil.copytree(shared, suite, copy_function=shutil.copyfile)
        # Its folders may be for reading only; cases of ours and results are put into the copy.
        for path, _, _ in os.walk(suite):
            os.chmod(path, 0o755)
        for name in ours():
            if os.path.exists(f"{suite}/cases/{name}"):
                sys.exit(f"conformance: {name} is a case of SHARED already: name ours differently")
            shutil.copytree(f"{OURS}/{name}", f"{suite}/cases/{name}", copy_function=shutil.copyfile)
        return record(suite, names) if "--record" in sys.argv else run(suite, names)


def ours():
    return sorted(os.listdir(OURS)) if os.path.isdir(OURS) else []


def record(suite, names):
    chosen = [n for n in ours() if not names or any(n == x or (x.endswith("*") and n.startswith(x[:-1])) for x in names)]
    if not chosen:
        sys.exit("conformance: no case of ours has that name")
    done = subprocess.run(engine(suite, "record.py", chosen), stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="")
    for name in chosen:
        if f"recorded {name}\n" in done.stdout:
            shutil.copyfile(f"{suite}/cases/{name}/expected.json", f"{OURS}/{name}/expected.json")
    return 0 if done.stdout.rstrip().endswith("problems: 0") else 1


def engine(suite, program, arguments):
    """The command that runs a program of the suite with our driver and our backends."""
    loader = (f"import sys, runpy; sys.path[:0] = [{HERE!r}, {suite!r}]; import backends, wire; sys.argv = {[program] + arguments!r}; "
              f"runpy.run_path({suite + '/' + program!r}, run_name='__main__')")
    return [sys.executable, "-B", "-c", loader]


def run(suite, names):
    process = subprocess.Popen(engine(suite, "verify.py", ["--target", "meshd", "-v"] + names), stdout=subprocess.PIPE, text=True)
    passed, failed = set(), set()
    for line in process.stdout:
        # The suite's own closing line counts pending cases as failed; ours says more.
        if not line.rstrip().endswith(" failed"):
            print(line, end="", flush=True)
        if line.startswith("pass "):
            passed.add(line.split()[1])
        if line.startswith("FAIL "):
            failed.add(line.split()[1])
    process.wait()
    unexpected = failed - pending()
    surprising = passed & pending()
    for name in sorted(surprising):
        print(f"{name} passes now: take it out of pending.txt")
    own = len(passed & set(ours()))
    print(f"conformance: {len(passed)} as Envoy ({own} of them ours), {len(failed & pending())} pending, {len(unexpected)} wrong")
    return 1 if unexpected or surprising or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
