"""Names in rules, and delegates merged into their roots. A reading of `pilot/pkg/model/virtualservice.go`."""
import copy

from .words import SUFFIX


def roots(documents):
    """The root VirtualServices, short names resolved, delegates merged in."""
    resolved = [resolve_names(d) for d in documents]
    by_name = {(d["metadata"]["namespace"], d["metadata"]["name"]): d for d in resolved}
    out = []
    for d in resolved:
        spec = d["spec"]
        if not spec.get("hosts"):
            continue
        http = []
        for route in spec.get("http") or []:
            if "delegate" not in route:
                http.append(route)
                continue
            name = (route["delegate"].get("namespace", d["metadata"]["namespace"]), route["delegate"]["name"])
            for inner in (by_name.get(name) or {"spec": {}})["spec"].get("http") or []:
                merged = merge_routes(route, inner)
                if merged is not None:
                    http.append(merged)
        out.append({**d, "spec": {**spec, "http": http}})
    return out


def resolve_names(document):
    """Short names of a rule mean its own namespace."""
    document = copy.deepcopy(document)
    namespace = document["metadata"]["namespace"]

    def full(host):
        return host if "." in host or host.startswith("*") else f"{host}.{namespace}{SUFFIX}"
    spec = document["spec"]
    spec["hosts"] = [full(h) for h in spec.get("hosts") or []]
    for block in (spec.get("http") or []) + (spec.get("tcp") or []) + (spec.get("tls") or []):
        targets = [r["destination"] for r in block.get("route") or []] + [m["destination"] for m in block.get("mirrors") or []]
        for target in targets + ([block["mirror"]] if "mirror" in block else []):
            target["host"] = full(target["host"])
    return document


def merge_routes(root, inner):
    match = merge_matches(root.get("match") or [], inner.get("match") or [])
    if match is None:
        return None
    merged = {**{k: v for k, v in root.items() if k not in ("delegate", "match", "name")}, **inner}
    names = [n for n in (root.get("name"), inner.get("name")) if n]
    if names:
        merged["name"] = "-".join(names)
    merged["match"] = match
    return merged


def merge_matches(root, inner):
    if not root or not inner:
        return root or inner
    out = []
    for leaf in inner:
        found = [merge_match(r, leaf) for r in root if not conflict(r, leaf)]
        if not found:
            return None
        out += found
    return out


def merge_match(root, leaf):
    out = {**root, **leaf}
    for key in ("headers", "withoutHeaders", "queryParams", "sourceLabels"):
        if key in root or key in leaf:
            out[key] = {**(root.get(key) or {}), **(leaf.get(key) or {})}
    return out


def conflict(root, leaf):
    pairs = [(root.get(k), leaf.get(k)) for k in ("uri", "scheme", "method", "authority")]
    for key in ("headers", "withoutHeaders", "queryParams"):
        pairs += [((root.get(key) or {}).get(name), value) for name, value in (leaf.get(key) or {}).items()]
    labels = root.get("sourceLabels") or {}
    return (any(string_conflict(a, b) for a, b in pairs)
            or root.get("ignoreUriCase", False) != leaf.get("ignoreUriCase", False)
            or ("port" in root and "port" in leaf and root["port"] != leaf["port"])
            or ("sourceNamespace" in root and root["sourceNamespace"] != leaf.get("sourceNamespace"))
            or any(labels.get(k, v) != v for k, v in (leaf.get("sourceLabels") or {}).items())
            or bool(root.get("gateways")) and not set(leaf.get("gateways") or []) <= set(root["gateways"]))


def string_conflict(root, leaf):
    if root is None or leaf is None:
        return False
    if "regex" in root or "regex" in leaf:
        return bool(root) and bool(leaf)
    if root.get("exact"):
        return leaf.get("exact") != root["exact"]
    if root.get("prefix"):
        return not (leaf.get("prefix") or leaf.get("exact") or "").startswith(root["prefix"])
    return True
