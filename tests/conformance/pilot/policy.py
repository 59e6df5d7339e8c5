"""Parts of a cluster that a DestinationRule's policy makes. A reading of `core/cluster_traffic_policy.go`."""
import copy

from .words import SUFFIX, TYPE, duration


def merged_destination_rules(documents):
    """By host: subsets united, the first top-level policy kept."""
    out = {}
    for d in documents:
        if d["kind"] != "DestinationRule":
            continue
        host = d["spec"]["host"]
        if "." not in host and not host.startswith("*"):
            host = f"{host}.{d['metadata']['namespace']}{SUFFIX}"
        spec = copy.deepcopy(d["spec"])
        if host not in out:
            out[host] = spec
            continue
        known = {s["name"] for s in out[host].get("subsets") or []}
        out[host].setdefault("subsets", []).extend(s for s in spec.get("subsets") or [] if s["name"] not in known)
        if not out[host].get("trafficPolicy"):
            out[host]["trafficPolicy"] = spec.get("trafficPolicy")
    return out


def port_policy(policy, port):
    for level in policy.get("portLevelSettings") or []:
        if level["port"]["number"] == port:
            return level
    return policy


def merge_policy(base, own):
    return {**base, **(own or {})}


def consistent_hash(policy):
    return (policy.get("loadBalancer") or {}).get("consistentHash")


def hash_policy(rule):
    if not rule:
        return None
    if "httpHeaderName" in rule:
        return {"header": {"header_name": rule["httpHeaderName"]}}
    if "httpQueryParameterName" in rule:
        return {"query_parameter": {"name": rule["httpQueryParameterName"]}}
    if rule.get("useSourceIp"):
        return {"connection_properties": {"source_ip": True}}
    if "httpCookie" in rule:
        cookie = rule["httpCookie"]
        out = {k: cookie[k] for k in ("name", "path") if k in cookie}
        if "ttl" in cookie:
            out["ttl"] = duration(cookie["ttl"])
        if cookie.get("attributes"):
            out["attributes"] = cookie["attributes"]
        return {"cookie": out}
    return None


def outlier_detection(rule):
    out = {"enforcing_success_rate": 0}
    for key, name in (("consecutive5xxErrors", "consecutive_5xx"), ("consecutiveGatewayErrors", "consecutive_gateway_failure")):
        if key in rule:
            out[name] = rule[key]
            out["enforcing_" + name] = 100 if rule[key] else 0
    for key, name in (("interval", "interval"), ("baseEjectionTime", "base_ejection_time")):
        if key in rule:
            out[name] = duration(rule[key])
    if rule.get("maxEjectionPercent"):
        out["max_ejection_percent"] = rule["maxEjectionPercent"]
    if rule.get("splitExternalLocalOriginErrors"):
        out["split_external_local_origin_errors"] = True
        if rule.get("consecutiveLocalOriginFailures"):
            out["consecutive_local_origin_failure"] = rule["consecutiveLocalOriginFailures"]
            out["enforcing_consecutive_local_origin_failure"] = 100
        out["enforcing_local_origin_success_rate"] = 0
    return out


def is_http2(port, http):
    return port["protocol"].upper() in ("HTTP2", "GRPC") or http.get("h2UpgradePolicy") == "UPGRADE"


def protocol_options(port, http, tcp, outlier):
    out, common = {}, {}
    idle = http.get("idleTimeout", tcp.get("idleTimeout"))
    if idle:
        common["idle_timeout"] = duration(idle)
    if http.get("maxRequestsPerConnection"):
        common["max_requests_per_connection"] = http["maxRequestsPerConnection"]
    if tcp.get("maxConnectionDuration"):
        common["max_connection_duration"] = duration(tcp["maxConnectionDuration"])
    if common:
        out["common_http_protocol_options"] = common
    if http.get("useClientProtocol"):
        out["use_downstream_protocol_config"] = {"http_protocol_options": {}, "http2_protocol_options": {}}
    elif is_http2(port, http):
        h2 = {}
        if http.get("maxConcurrentStreams"):
            h2["max_concurrent_streams"] = http["maxConcurrentStreams"]
        out["explicit_http_config"] = {"http2_protocol_options": h2}
    elif common:
        out["explicit_http_config"] = {"http_protocol_options": {}}
    codes = (outlier or {}).get("outlierDetectionHttpErrorCodes")
    if codes:
        rules = [{"http_response_headers_match": {"headers": [{"name": ":status", "string_match": {"exact": str(c)}}]}} for c in codes]
        out["outlier_detection"] = {"error_matcher": rules[0] if len(rules) == 1 else {"or_match": {"rules": rules}}}
        out.setdefault("explicit_http_config", {"http_protocol_options": {}})
    return out


def balance(cluster, rule):
    simple = rule.get("simple")
    if simple == "PASSTHROUGH":
        cluster.update({"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"})
        del cluster["load_assignment"]
        return
    if simple in ("RANDOM", "ROUND_ROBIN"):
        cluster["lb_policy"] = simple
    rule = rule.get("consistentHash")
    if rule is None:
        return
    if "maglev" in rule:
        cluster["lb_policy"] = "MAGLEV"
        if rule["maglev"].get("tableSize"):
            cluster["maglev_lb_config"] = {"table_size": rule["maglev"]["tableSize"]}
        return
    cluster["lb_policy"] = "RING_HASH"
    if "ringHash" in rule:
        if rule["ringHash"].get("minimumRingSize"):
            cluster["ring_hash_lb_config"] = {"minimum_ring_size": rule["ringHash"]["minimumRingSize"]}
    else:
        cluster["ring_hash_lb_config"] = {"minimum_ring_size": rule.get("minimumRingSize") or 1024}
