#!/usr/bin/env python3
"""Runs the cases recorded from Envoy against a real meshd.

    run.py SHARED [CASE ...]      SHARED holds conformance/; CASE may end in *
    MESHD, MESHCTL                the binaries

Cases that are not meant to pass yet are in `pending.txt`, each with its reason; one of them that passes is an error, so
that the list cannot lie. Exit 0 when every other case passes.
"""
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def pending():
    with open(HERE + "/pending.txt") as file:
        lines = (line.split("#")[0].strip() for line in file)
        return {line.split(":")[0].strip() for line in lines if line}


def main():
    names = sys.argv[2:]
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        # The suite makes throw-away certificates beside itself: it gets a copy to do that in.
        suite = folder + "/conformance"
        shutil.copytree(sys.argv[1] + "/conformance", suite, copy_function=shutil.copyfile)
        for path, _, _ in os.walk(suite):
            os.chmod(path, 0o755)
        return run(suite, names)


def run(suite, names):
    loader = (f"import sys, runpy; sys.path[:0] = [{HERE!r}, {suite!r}]; sys.argv = ['verify.py', '--target', 'meshd', '-v'] + {names!r}; "
              f"runpy.run_path({suite + '/verify.py'!r}, run_name='__main__')")
    process = subprocess.Popen([sys.executable, "-B", "-c", loader], stdout=subprocess.PIPE, text=True)
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
    print(f"conformance: {len(passed)} as Envoy, {len(failed & pending())} pending, {len(unexpected)} wrong")
    return 1 if unexpected or surprising or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
