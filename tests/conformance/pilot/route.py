"""Parts of a route: matches, header operations, redirects, faults, CORS, retries. A reading of `core/route/route.go`."""
from .words import TYPE, duration, millionths, seconds

PREVIOUS_HOSTS = {
    "name": "envoy.retry_host_predicates.previous_hosts",
    "typed_config": {"@type": TYPE + "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
}
GRPC_CODES = ("OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED RESOURCE_EXHAUSTED "
              "FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED").split()
REDIRECTS = {301: "MOVED_PERMANENTLY", 302: "FOUND", 303: "SEE_OTHER", 307: "TEMPORARY_REDIRECT", 308: "PERMANENT_REDIRECT"}


def present(value):
    return not value or value.get("regex") == "*"


def string_match(value):
    return {"safe_regex": {"regex": value["regex"]}} if "regex" in value else dict(value)


def header_match(name, value):
    return {"name": name, "present_match": True} if present(value) else {"name": name, "string_match": string_match(value)}


def route_match(match):
    if match is None:
        return {"prefix": "/"}
    out = {"prefix": "/"}
    for kind, key in (("exact", "path"), ("prefix", "prefix"), ("regex", "safe_regex")):
        if kind in (match.get("uri") or {}):
            value = match["uri"][kind]
            out = {key: {"regex": value} if kind == "regex" else value}
    out["case_sensitive"] = not match.get("ignoreUriCase", False)
    headers = [header_match(n, v) for n, v in (match.get("headers") or {}).items()]
    for name, value in (match.get("withoutHeaders") or {}).items():
        one = {**header_match(name, value), "invert_match": True}
        if not present(value):
            one["treat_missing_header_as_empty"] = True
        headers.append(one)
    headers.sort(key=lambda h: h["name"])
    headers += [header_match(f":{k}", match[k]) for k in ("method", "authority", "scheme") if k in match]
    if headers:
        out["headers"] = headers
    if match.get("queryParams"):
        out["query_parameters"] = [header_match(n, v) for n, v in match["queryParams"].items()]
    return out


def is_catch_all(match):
    return ((match.get("prefix") == "/" or match.get("safe_regex", {}).get("regex") == ".*")
            and "headers" not in match and "query_parameters" not in match)


def header_operations(headers):
    out, authority = {}, ""
    for side, name in (("request", "request"), ("response", "response")):
        rules = (headers or {}).get(side) or {}
        added = []
        for kind, action in (("set", "OVERWRITE_IF_EXISTS_OR_ADD"), ("add", "APPEND_IF_EXISTS_OR_ADD")):
            for key, value in sorted((rules.get(kind) or {}).items()):
                if side == "request" and key.lower() in ("host", ":authority") and not (kind == "add" and authority):
                    authority = value
                if not internal(key):
                    added.append({"header": {"key": key, "value": value}, "append_action": action})
        if added:
            out[f"{name}_headers_to_add"] = added
        removed = [k for k in rules.get("remove") or [] if not internal(k)]
        if removed:
            out[f"{name}_headers_to_remove"] = removed
    out["authority"] = authority
    return out


def internal(key):
    return key.startswith(":") or key.lower() == "host"


def redirect(rule, port):
    out = {}
    if rule.get("authority"):
        out["host_redirect"] = rule["authority"]
    if rule.get("prefixRewrite"):
        out["prefix_rewrite"] = rule["prefixRewrite"]
    elif rule.get("uri"):
        out["path_redirect"] = rule["uri"]
    if rule.get("scheme"):
        out["scheme_redirect"] = rule["scheme"]
    chosen = rule.get("port", port if rule.get("derivePort") == "FROM_REQUEST_PORT" else 0)
    if chosen and (chosen, rule.get("scheme") or "http") not in ((80, "http"), (443, "https")):
        out["port_redirect"] = chosen
    out["response_code"] = REDIRECTS[rule.get("redirectCode") or 301]
    return out


def direct_response(rule):
    out = {"status": rule["status"]}
    body = rule.get("body") or {}
    if "string" in body:
        out["body"] = {"inline_string": body["string"]}
    elif "bytes" in body:
        out["body"] = {"inline_bytes": body["bytes"]}
    return out


def fault(rule):
    out = {"@type": TYPE + "envoy.extensions.filters.http.fault.v3.HTTPFault"}
    if "delay" in rule:
        delay = rule["delay"]
        share = millionths(delay["percentage"].get("value", 0)) if "percentage" in delay \
            else {"numerator": delay.get("percent", 0), "denominator": "HUNDRED"}
        out["delay"] = {"percentage": share, "fixed_delay": duration(delay["fixedDelay"])}
    if "abort" in rule:
        abort = rule["abort"]
        out["abort"] = {}
        if "percentage" in abort:
            out["abort"]["percentage"] = millionths(abort["percentage"].get("value", 0))
        if "httpStatus" in abort:
            out["abort"]["http_status"] = abort["httpStatus"]
        else:
            out["abort"]["grpc_status"] = GRPC_CODES.index(abort["grpcStatus"])
    return out


def cors(rule):
    out = {"@type": TYPE + "envoy.extensions.filters.http.cors.v3.CorsPolicy",
           "forward_not_matching_preflights": rule.get("unmatchedPreflights") != "IGNORE",
           "filter_enabled": {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}}
    origins = [string_match(o) for o in rule.get("allowOrigins") or []] or [{"exact": o} for o in rule.get("allowOrigin") or []]
    if origins:
        out["allow_origin_string_match"] = origins
    for key in ("allowHeaders", "allowMethods", "exposeHeaders"):
        if rule.get(key):
            out[key[:-7].lower() + "_" + key[-7:].lower()] = ",".join(rule[key])
    if "maxAge" in rule:
        out["max_age"] = str(int(seconds(rule["maxAge"])))
    if "allowCredentials" in rule:
        out["allow_credentials"] = rule["allowCredentials"]
    return out


def retry_policy(rule, consistent):
    policy = {"num_retries": 2, "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
              "host_selection_retry_max_attempts": 5}
    if not consistent:
        policy["retry_host_predicate"] = [PREVIOUS_HOSTS]
    if rule is None:
        return policy
    if rule.get("attempts", 0) <= 0:
        return None
    policy["num_retries"] = rule["attempts"]
    if rule.get("retryOn"):
        words = [w.strip() for w in rule["retryOn"].split(",") if w.strip()]
        codes = [int(w) for w in words if w.isdigit()]
        words = [w for w in words if not w.isdigit()]
        if codes and "retriable-status-codes" not in words:
            words.append("retriable-status-codes")
        policy["retry_on"] = ",".join(words)
        if codes:
            policy["retriable_status_codes"] = codes
    if "perTryTimeout" in rule:
        policy["per_try_timeout"] = duration(rule["perTryTimeout"])
    if "retryIgnorePreviousHosts" in rule:
        policy.pop("retry_host_predicate", None)
        if rule["retryIgnorePreviousHosts"]:
            policy["retry_host_predicate"] = [PREVIOUS_HOSTS]
    if rule.get("retryRemoteLocalities"):
        policy["retry_priority"] = {"name": "envoy.retry_priorities.previous_priorities", "typed_config": {
            "@type": TYPE + "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", "update_frequency": 2}}
    if "backoff" in rule:
        policy["retry_back_off"] = {"base_interval": duration(rule["backoff"])}
    return policy
