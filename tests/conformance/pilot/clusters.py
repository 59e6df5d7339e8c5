"""Clusters and how they are balanced. A reading of `core/cluster_builder.go`."""
from .locality import distribute, fail_over, fail_over_by_labels
from .policy import balance, consistent_hash, hash_policy, merge_policy, is_http2, outlier_detection, port_policy, protocol_options
from .tls import automatic, originate, tell_of_caller
from .words import TYPE, cluster_name, duration, locality_of, matches

UNLIMITED = 4294967295


class Clusters:
    """Where requests can go."""

    def hash_of_service(self, host, port):
        policy = (self.destination_rule(host) or {}).get("trafficPolicy") or {}
        chosen = consistent_hash(policy)
        for level in policy.get("portLevelSettings") or []:
            if level["port"]["number"] == port:
                chosen = consistent_hash(level) or chosen
        return hash_policy(chosen)

    def hash_of_destination(self, destination):
        rule = self.destination_rule(destination["host"]) or {}
        policies = [rule.get("trafficPolicy") or {}]
        for subset in rule.get("subsets") or []:
            if subset["name"] == destination.get("subset"):
                policies.append(subset.get("trafficPolicy") or {})
        chosen = None
        for policy in policies:
            chosen = consistent_hash(policy) or chosen
            for level in policy.get("portLevelSettings") or []:
                if level["port"]["number"] == destination.get("port", {}).get("number"):
                    chosen = consistent_hash(level) or chosen
        return hash_policy(chosen)

    def destination_rule(self, host):
        if host in self.destination_rules:
            return self.destination_rules[host]
        wild = [h for h in self.destination_rules if h.startswith("*") and matches(h, host)]
        return self.destination_rules[max(wild, key=len)] if wild else None

    def clusters(self):
        out = []
        for host, service in self.services.items():
            rule = self.destination_rule(host) or {}
            for port in service["ports"]:
                base = port_policy(rule.get("trafficPolicy") or {}, port["number"])
                out.append(self.one_cluster(service, port, "", {}, base))
                for subset in rule.get("subsets") or []:
                    merged = merge_policy(rule.get("trafficPolicy") or {}, subset.get("trafficPolicy"))
                    policy = port_policy(merged, port["number"])
                    out.append(self.one_cluster(service, port, subset["name"], subset.get("labels") or {}, policy))
        return out

    def one_cluster(self, service, port, subset, labels, policy):
        name = cluster_name(service["host"], subset, port["number"])
        pool = policy.get("connectionPool") or {}
        http, tcp = pool.get("http") or {}, pool.get("tcp") or {}
        balancer = policy.get("loadBalancer") or {}
        outlier = policy.get("outlierDetection")
        threshold = {"max_connections": tcp.get("maxConnections") or UNLIMITED,
                     "max_pending_requests": http.get("http1MaxPendingRequests") or UNLIMITED,
                     "max_requests": http.get("http2MaxRequests") or UNLIMITED,
                     "max_retries": http.get("maxRetries") or UNLIMITED}
        budget = policy.get("retryBudget")
        if budget is not None:
            threshold["retry_budget"] = {"budget_percent": {"value": budget.get("percent", 20.0)},
                                         "min_retry_concurrency": budget.get("minRetryConcurrency") or 3}
            if "budgetInterval" in budget:
                threshold["retry_budget"]["budget_interval"] = duration(budget["budgetInterval"])
        cluster = {"name": name, "type": "STATIC", "connect_timeout": duration(tcp.get("connectTimeout", "10s")),
                   "lb_policy": "LEAST_REQUEST", "common_lb_config": {}, "circuit_breakers": {"thresholds": [threshold]}}
        if outlier is not None:
            cluster["outlier_detection"] = outlier_detection(outlier)
            cluster["common_lb_config"]["healthy_panic_threshold"] = {"value": float(outlier.get("minHealthPercent", 0))}
        options = protocol_options(port, http, tcp, outlier)
        tls = policy.get("tls") or {}
        if tls.get("mode", "DISABLE") != "DISABLE":
            cluster["transport_socket"] = originate(tls, is_http2(port, http))
            asked = automatic(tls)
            if asked:
                options["upstream_http_protocol_options"] = asked
                options.setdefault("explicit_http_config", {"http_protocol_options": {}})
        proxy = policy.get("proxyProtocol")
        if proxy is not None:
            cluster["transport_socket"] = tell_of_caller(proxy, cluster.get("transport_socket"))
        if options:
            cluster["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions", **options}}
        cluster["load_assignment"] = {"cluster_name": name, "endpoints": self.localities(service, port, labels)}
        locality = balancer.get("localityLbSetting") or {}
        self.place(cluster, locality, outlier is not None)
        for group in cluster["load_assignment"]["endpoints"]:
            for endpoint in group["lb_endpoints"]:
                del endpoint["labels"]
        balance(cluster, balancer)
        return cluster

    def localities(self, service, port, labels):
        groups = {}
        for instance in service.get("instances") or []:
            if port["number"] not in instance.get("ports", [port["number"]]):
                continue
            if not labels.items() <= (instance.get("labels") or {}).items():
                continue
            place = f"{{{{PORT:{service['host']}|{port['number']}|{instance['name']}}}}}"
            address = {"socket_address": {"address": "127.0.0.1", "port_value": place}}
            groups.setdefault(instance.get("locality", ""), []).append(
                {"endpoint": {"address": address}, "load_balancing_weight": instance.get("weight", 1),
                 "labels": self.labels_of(instance)})
        out = []
        for locality, endpoints in groups.items():
            group = {"lb_endpoints": endpoints, "load_balancing_weight": sum(e["load_balancing_weight"] for e in endpoints)}
            if locality:
                group["locality"] = locality_of(locality)
            out.append(group)
        return out

    def place(self, cluster, setting, outlier):
        """Locality: weights by `distribute`, or priorities by `failover`."""
        if setting.get("enabled") is False:
            return
        mine = self.client.get("locality", "")
        assignment = cluster["load_assignment"]
        if "distribute" in setting or (outlier and (setting.get("failover") or setting.get("failoverPriority"))):
            cluster["common_lb_config"]["locality_weighted_lb_config"] = {}
        if "distribute" in setting:
            distribute(assignment, mine, setting["distribute"])
        elif outlier:
            if setting.get("failoverPriority"):
                fail_over_by_labels(assignment, self.labels_of(self.client), setting["failoverPriority"])
            if setting.get("failover") or not setting.get("failoverPriority"):
                fail_over(assignment, mine, setting.get("failover") or [])

    @staticmethod
    def labels_of(workload):
        """Labels, and where it is. Source: `AugmentLabels`."""
        places = zip(("region", "zone"), (workload.get("locality") or "").split("/"))
        labels = {f"topology.kubernetes.io/{kind}": name for kind, name in places if name}
        parts = (workload.get("locality") or "").split("/")
        if len(parts) > 2:
            labels["topology.istio.io/subzone"] = parts[2]
        return {**(workload.get("labels") or {}), **labels}
