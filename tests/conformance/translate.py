#!/usr/bin/env python3
"""Writes a case's Envoy bootstrap: what Istio's control plane would generate for the client's outbound sidecar.

    translate.py CASE_FOLDER ...      writes envoy.yaml.tmpl from rules.yaml and services.yaml
    translate.py --check SHARED       compares with the bootstraps of the cases in SHARED

The reading of istio/istio's pilot is in `pilot/`. Ports stay open: `{{LISTEN:…}}` and `{{PORT:service|port|instance}}` are filled in by
the suite. What it does not know, it refuses: ISTIO_MUTUAL, AUTO_PASSTHROUGH, Sidecar.
"""
import json
import os
import sys

import yaml

from pilot.bootstrap import Translation

HEAD = """# The equivalent of rules.yaml and services.yaml as Istio generates it for an outbound sidecar; written by translate.py.
"""


def translate(folder):
    with open(folder + "/services.yaml") as services, open(folder + "/rules.yaml") as rules:
        return Translation(yaml.safe_load(services), list(yaml.safe_load_all(rules))).bootstrap()


def write(folder):
    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data):
            return True
    with open(folder + "/envoy.yaml.tmpl", "w") as file:
        file.write(HEAD + yaml.dump(translate(folder), Dumper=Plain, sort_keys=False, width=120))


def check(shared):
    """Compares with other bootstraps for the same rules; prints what differs."""
    differ = 0
    cases = shared + "/conformance/cases"
    for name in sorted(os.listdir(cases)):
        try:
            with open(f"{cases}/{name}/envoy.yaml.tmpl") as file:
                theirs = yaml.safe_load(file)
            ours = translate(f"{cases}/{name}")
        except Exception as error:
            print(f"{name}: not compared: {str(error).splitlines()[0]}")
            continue
        lines = list(differences(json.loads(json.dumps(theirs)), json.loads(json.dumps(ours)), ""))
        differ += bool(lines)
        print(f"{name}: {'same' if not lines else 'DIFFERS'}", *lines, sep="\n    ")
    return 1 if differ else 0


def differences(a, b, path):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(set(a) | set(b)):
            yield from differences(a.get(key), b.get(key), f"{path}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        if a and isinstance(a[0], dict) and "name" in a[0]:
            a, b = sorted(a, key=lambda x: str(x.get("name"))), sorted(b, key=lambda x: str(x.get("name")))
        for i, (x, y) in enumerate(zip(a, b)):
            yield from differences(x, y, f"{path}[{i}]")
    elif a != b:
        yield f"{path}: {a} / {b}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        sys.exit(check(sys.argv[2]))
    for folder in sys.argv[1:]:
        write(folder.rstrip("/"))
