"""Endpoints by locality: priorities and weights. A reading of `core/loadbalancer`."""


def same_start(mine, theirs):
    return sum(1 for n in (1, 2, 3) if mine.split("/")[:n] == theirs.split("/")[:n] and len(theirs.split("/")) >= n)


def name_of(group):
    return "/".join(group.get("locality", {}).values())


def covers(pattern, locality):
    parts, names = pattern.split("/"), locality.split("/")
    return all(p == "*" or (i < len(names) and names[i] == p) for i, p in enumerate(parts))


def fail_over(assignment, mine, rules):
    """Priorities: 0 same sub-zone, 1 zone, 2 region, 3 the failover region (or any other), 4 the rest; then made dense."""
    if not mine:
        return
    region = mine.split("/")[0]
    for group in assignment["endpoints"]:
        theirs = name_of(group)
        level = 3 - same_start(mine, theirs)
        if level == 3:
            named = [r["to"] for r in rules if r["from"] == region]
            if named and theirs.split("/")[0] not in named:
                level = 4
        group["priority"] = group.get("priority", 0) * 5 + level
    dense = {p: i for i, p in enumerate(sorted({g["priority"] for g in assignment["endpoints"]}))}
    for group in assignment["endpoints"]:
        group["priority"] = dense[group["priority"]]


def distribute(assignment, mine, rules):
    """Weights of the first rule whose `from` covers the client; localities it does not name are left out."""
    rule = next((r for r in rules if covers(r["from"], mine)), None)
    if rule is None:
        return
    out = []
    taken = set()
    for pattern, weight in sorted(rule["to"].items(), key=lambda i: -len(i[0])):
        groups = [g for g in assignment["endpoints"] if id(g) not in taken and covers(pattern, name_of(g))]
        total = sum(g["load_balancing_weight"] for g in groups)
        for group in groups:
            taken.add(id(group))
            group["load_balancing_weight"] = max(1, -(-weight * group["load_balancing_weight"] // total))
            out.append(group)
    assignment["endpoints"] = [g for g in assignment["endpoints"] if g in out]


def fail_over_by_labels(assignment, mine, wanted):
    """Priorities by labels: each group is split by how many of the labels, from the first on, are the caller's."""
    if not mine:
        return
    names = [w.split("=", 1)[0] for w in wanted]
    values = [w.split("=", 1)[1] if "=" in w else mine.get(n, "") for w, n in zip(wanted, names)]
    out = []
    for group in assignment["endpoints"]:
        split = {}
        for endpoint in group["lb_endpoints"]:
            alike = next((j for j, (n, v) in enumerate(zip(names, values)) if endpoint["labels"].get(n, "") != v), len(names))
            split.setdefault(len(names) - alike, []).append(endpoint)
        for level in sorted(split):
            out.append({**group, "lb_endpoints": split[level], "priority": level,
                        "load_balancing_weight": sum(e["load_balancing_weight"] for e in split[level])})
    dense = {p: i for i, p in enumerate(sorted({g["priority"] for g in out}))}
    for group in out:
        group["priority"] = dense[group["priority"]]
    assignment["endpoints"] = out
