"""Words that all parts of a bootstrap share: names of clusters, hosts, durations."""
import re

SUFFIX = ".svc.cluster.local"
TYPE = "type.googleapis.com/"


def cluster_name(host, subset, port):
    return f"outbound|{port}|{subset}|{host}"


def matches(pattern, host):
    return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1


def locality_of(text):
    return dict(zip(("region", "zone", "sub_zone"), text.split("/")))


def millionths(value):
    return {"numerator": int(value * 10000), "denominator": "MILLION"}


def seconds(text):
    """`1h30m`, `1.5s`, `400ms` in seconds."""
    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)(ms|h|m|s)", text))


def duration(text):
    """Envoy reads seconds only."""
    return f"{seconds(text):g}s"
