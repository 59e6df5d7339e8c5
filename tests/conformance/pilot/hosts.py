"""Virtual hosts of a listener and their routes. A reading of `core/httproute.go` and `core/route/route.go`."""
from .route import cors, direct_response, fault, header_operations, is_catch_all, redirect, retry_policy, route_match
from .words import SUFFIX, cluster_name, duration, matches, millionths


class Hosts:
    """What a listener's requests are routed by."""

    def virtual_hosts(self, port):
        """All virtual hosts of a listener, in Envoy's form."""
        out, taken, covered = [], set(), set()
        on_port = [h for h, s in self.services.items() if any(p["number"] == port for p in s["ports"])]
        for vs in self.virtual_services:
            if not vs["spec"].get("http"):
                continue
            hosts = vs["spec"]["hosts"]
            mine = [h for h in on_port if self.most_specific(h) is vs]
            other = [h for h in hosts if h not in self.services and not (h.startswith("*") and any(matches(h, s) for s in mine))]
            if not mine and port != 80:
                continue
            routes = self.routes(vs, port)
            if not routes:
                continue
            for host in sorted(mine) + other:
                if not any(host == o["name"].rsplit(":", 1)[0] for o in out):
                    self.add(out, taken, host, port, routes)
                covered.add(host)
        for host in on_port:
            if host not in covered:
                self.add(out, taken, host, port, [self.default_route(host, port)])
        block = {"name": "block_all", "domains": ["*"], "include_request_attempt_count": True,
                 "routes": [{"name": "block_all", "match": {"prefix": "/"}, "direct_response": {"status": 502}}]}
        return sorted(out, key=lambda v: v["name"]) + [block]

    def most_specific(self, host):
        exact = [vs for vs in self.virtual_services if host in vs["spec"]["hosts"]]
        if exact:
            return exact[0]
        wild = [(len(h), -i, vs) for i, vs in enumerate(self.virtual_services)
                for h in vs["spec"]["hosts"] if h.startswith("*") and matches(h, host)]
        return max(wild, key=lambda w: w[:2])[2] if wild else None

    def add(self, out, taken, host, port, routes):
        domains = [d for d in self.domains(host) if d not in taken]
        taken.update(domains)
        if domains:
            out.append({"name": f"{host}:{port}", "domains": domains, "routes": routes, "include_request_attempt_count": True})

    def domains(self, host):
        if host not in self.services:
            return [host]
        names = [host] if host.startswith("*") else [host, host + "."]
        if host.endswith(SUFFIX):
            name, namespace = host[:-len(SUFFIX)].split(".")
            if namespace == self.namespace:
                names.append(name)
            names += [f"{name}.{namespace}.svc", f"{name}.{namespace}"]
        return names

    def default_route(self, host, port):
        action = {"cluster": cluster_name(host, "", port), "timeout": "0s", "max_grpc_timeout": "0s"}
        hash_policy = self.hash_of_service(host, port)
        action["retry_policy"] = retry_policy(None, False)
        if hash_policy:
            action["hash_policy"] = [hash_policy]
        return {"name": "default", "match": {"prefix": "/"}, "route": action}

    def routes(self, vs, port):
        out = []
        self.bound_in = vs["metadata"]["namespace"]
        for route in vs["spec"]["http"]:
            for match in route.get("match") or [None]:
                built = self.route(route, match, port)
                if built is None:
                    continue
                out.append(built)
                if is_catch_all(built["match"]):
                    return out
            if not route.get("match"):
                return out
        return out

    def route(self, route, match, port):
        if match and not self.applies(match, port):
            return None
        out = {"match": route_match(match)}
        name = route.get("name", "") + ("." + match["name"] if match and match.get("name") else "")
        if name:
            out["name"] = name
        operations = header_operations(route.get("headers"))
        authority = operations.pop("authority")
        out.update(operations)
        if "redirect" in route:
            out["redirect"] = redirect(route["redirect"], port)
        elif "directResponse" in route:
            out["direct_response"] = direct_response(route["directResponse"])
        else:
            self.forward(out, route, authority, port)
        filters = {}
        if "fault" in route:
            filters["envoy.filters.http.fault"] = fault(route["fault"])
        if "corsPolicy" in route:
            filters["envoy.filters.http.cors"] = cors(route["corsPolicy"])
        if filters:
            out["typed_per_filter_config"] = filters
        return out

    def applies(self, match, port):
        if match.get("port", port) != port:
            return False
        if match.get("gateways"):
            return any(self.at in (name, f"{self.bound_in}/{name}") for name in match["gateways"])
        labels = (match.get("sourceLabels") or {}).items()
        return labels <= self.labels.items() and match.get("sourceNamespace", self.namespace) == self.namespace

    def forward(self, out, route, authority, port):
        timeout = duration(route.get("timeout", "0s"))
        action = {"timeout": timeout, "max_grpc_timeout": timeout}
        rewrite = route.get("rewrite") or {}
        if "uriRegexRewrite" in rewrite:
            action["regex_rewrite"] = {"pattern": {"regex": rewrite["uriRegexRewrite"]["match"]},
                                       "substitution": rewrite["uriRegexRewrite"]["rewrite"]}
        elif rewrite.get("uri"):
            action["prefix_rewrite"] = rewrite["uri"]
        authority = rewrite.get("authority") or authority
        mirrors = self.mirrors(route, port)
        if mirrors:
            action["request_mirror_policies"] = mirrors
        destinations, hashes = route["route"], []
        consistent = False
        if len(destinations) == 1:
            one = destinations[0]
            operations = header_operations(one.get("headers"))
            authority = authority or operations.pop("authority")
            operations.pop("authority", None)
            for key, values in operations.items():
                out[key] = out.get(key, []) + values
            action["cluster"] = self.cluster(one["destination"], port)
            hashes = [self.hash_of_destination(one["destination"])]
            consistent = hashes[0] is not None
        else:
            clusters = []
            for one in destinations:
                if not one.get("weight"):
                    continue
                operations = header_operations(one.get("headers"))
                host = operations.pop("authority")
                entry = {"name": self.cluster(one["destination"], port), "weight": one["weight"], **operations}
                if host:
                    entry["host_rewrite_literal"] = host
                clusters.append(entry)
                hashes.append(self.hash_of_destination(one["destination"]))
            action["weighted_clusters"] = {"clusters": clusters}
        if authority:
            action["host_rewrite_literal"] = authority
        retries = retry_policy(route.get("retries"), consistent)
        if retries:
            action["retry_policy"] = retries
        if any(hashes):
            action["hash_policy"] = [h for h in hashes if h]
        out["route"] = action

    def mirrors(self, route, port):
        wanted = []
        if "mirror" in route:
            percentage = route.get("mirrorPercentage", {}).get("value") if "mirrorPercentage" in route else None
            if percentage is None and "mirrorPercent" in route:
                percentage = float(route["mirrorPercent"])
            wanted.append((route["mirror"], percentage))
        for mirror in route.get("mirrors") or []:
            wanted.append((mirror["destination"], mirror["percentage"].get("value", 0) if "percentage" in mirror else None))
        out = []
        for destination, percentage in wanted:
            if percentage == 0:
                continue
            value = {"numerator": 100, "denominator": "HUNDRED"} if percentage is None else millionths(percentage)
            out.append({"cluster": self.cluster(destination, port), "runtime_fraction": {"default_value": value},
                        "trace_sampled": False, "disable_shadow_host_suffix_append": True})
        return out

    def cluster(self, destination, listener_port):
        host = destination["host"]
        service = self.services.get(host)
        port = destination.get("port", {}).get("number")
        if port is None:
            port = listener_port
            if service and len(service["ports"]) == 1:
                port = service["ports"][0]["number"]
        return cluster_name(host, destination.get("subset", ""), port)
