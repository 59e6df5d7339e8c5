//! Fields whose effect no verdict shows: sockets, time, chance, files. The tests that see it, by name.

use std::path::{Path, PathBuf};

use mesh_proto::resource::Kind;

/// Who sees what a field does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Kinds and the end of the paths: `connectionPool.tcp.maxConnections` is it wherever a policy stands.
    fields: &'static [&'static str],
    /// `file::test` or `folder of a recorded case`, below the root of the repository.
    tests: &'static [&'static str],
    /// Whether the tests are all there is: the Plan does not hold the field.
    pub(super) alone: bool,
}

const fn seen(fields: &'static [&'static str], tests: &'static [&'static str]) -> Seen {
    Seen { fields, tests, alone: false }
}

const SEEN: &[Seen] = &[
    // What needs instances that register, or zones with callers in them: more than a golden case has.
    Seen {
        fields: &["WorkloadGroup metadata*", "WorkloadGroup template*"],
        tests: &[
            "meshd/core/src/groups/tests.rs::a_member_gets_what_the_group_says",
            "tests/lab/groups.rs::a_host_that_joins_with_a_group_serves_as_the_group_says",
        ],
        alone: true,
    },
    Seen {
        fields: &["WorkloadGroup probe*"],
        tests: &[
            "meshd/core/src/groups/tests.rs::every_kind_of_probe_is_read_with_the_defaults_of_kubernetes",
        ],
        alone: true,
    },
    Seen {
        fields: &["zoneAwareLbSetting.enabled", "zoneAwareLbSetting.minClusterSize"],
        tests: &[
            "meshd/core/src/balance/zones/tests.rs::as_istios_own_cases_expect",
            "meshd/core/src/compile/tests/near.rs::zones_count_by_where_the_callers_of_the_same_account_are",
        ],
        alone: true,
    },
    Seen {
        fields: &["zoneAwareLbSetting.failover[].from", "zoneAwareLbSetting.failover[].to"],
        tests: &[
            "meshd/core/src/balance/zones/tests.rs::another_region_helps_when_the_own_one_is_down_and_the_named_one_first",
        ],
        alone: true,
    },
    Seen {
        fields: &["zoneAwareLbSetting.failoverPriority"],
        tests: &["meshd/core/src/balance/zones/tests.rs::labels_come_before_regions"],
        alone: true,
    },
    seen(
        &["MeshConfig localityLbSetting.failoverPriority"],
        &["meshd/core/src/compile/tests/near.rs::the_mesh_may_order_endpoints_by_labels_too"],
    ),
    seen(
        &["ServiceEntry endpoints[].network", "WorkloadEntry network"],
        &["meshd/core/src/compile/nearness.rs::the_network_of_an_entry_counts_as_a_label"],
    ),
    seen(
        &["retries.retryRemoteLocalities", "defaultHttpRetryPolicy.retryRemoteLocalities"],
        &[
            "tests/conformance/cases/retry-localities",
            "meshd/core/src/balance/tests.rs::a_retry_that_may_go_far_leaves_the_levels_that_were_tried",
        ],
    ),
    seen(
        &["MeshConfig dnsRefreshRate"],
        &["tests/lab/names.rs::round_robin_of_dns_is_one_endpoint_at_the_address_of_now"],
    ),
    // Connections and requests under way.
    seen(
        &[
            "connectionPool.tcp.maxConnections",
            "connectionPool.http.http1MaxPendingRequests",
            "connectionPool.http.http2MaxRequests",
            "connectionPool.http.maxRetries",
        ],
        &[
            "tests/conformance/cases/pool-limits",
            "meshd/tests/proxy/limits.rs::beyond_one_connection_and_one_waiting_request_is_overflow",
            "meshd/tests/proxy/pools.rs::limits_hold_across_workers",
        ],
    ),
    seen(
        &["connectionPool.http.maxRequestsPerConnection", "connectionPool.http.idleTimeout"],
        &["tests/conformance/cases/pool-limits"],
    ),
    seen(
        &["connectionPool.http.maxConcurrentStreams"],
        &["meshd/tests/proxy/pools.rs::streams_beyond_the_bound_go_on_another_connection"],
    ),
    seen(
        &["connectionPool.http.http2KeepAlive.interval", "connectionPool.http.http2KeepAlive.timeout"],
        &["meshd/tests/proxy/pools.rs::pings_end_an_http2_connection_whose_server_is_dead"],
    ),
    seen(
        &["connectionPool.http.h2UpgradePolicy", "MeshConfig h2UpgradePolicy"],
        &["meshd/tests/proxy/protocols.rs::http2_callers_reach_http1_applications_and_the_reverse"],
    ),
    seen(
        &["connectionPool.http.useClientProtocol"],
        &[
            "meshd/tests/proxy/pools.rs::a_caller_of_http2_is_spoken_to_upstream_as_it_speaks_where_the_rule_says_so",
        ],
    ),
    seen(
        &["connectionPool.tcp.connectTimeout", "MeshConfig connectTimeout"],
        &["tests/conformance/cases/pool-connect-timeout"],
    ),
    seen(
        &["connectionPool.tcp.idleTimeout"],
        &["meshd/tests/proxy/pools.rs::a_silent_tcp_connection_is_closed_and_a_busy_one_is_not"],
    ),
    seen(
        &["connectionPool.tcp.maxConnectionDuration"],
        &[
            "meshd/tests/proxy/pools.rs::a_connection_as_old_as_it_may_be_serves_no_further_request",
            "meshd/tests/proxy/pools.rs::a_tcp_connection_as_old_as_it_may_be_is_cut",
        ],
    ),
    seen(
        &["tcpKeepalive.probes", "tcpKeepalive.time", "tcpKeepalive.interval"],
        &["meshd/tests/proxy/pools.rs::keep_alive_is_set_where_the_rule_says_so"],
    ),
    seen(
        &["retryBudget.percent", "retryBudget.budgetInterval", "retryBudget.minRetryConcurrency"],
        &[
            "meshd/core/src/resilience/breaker.rs::a_retry_budget_with_an_interval_looks_back",
            "meshd/core/src/resilience/breaker.rs::a_retry_budget_is_a_share_of_the_requests_under_way",
            "meshd/tests/proxy/pools.rs::a_retry_budget_bounds_the_retries_of_a_burst",
        ],
    ),
    // The application of this host.
    seen(
        &[
            "inboundConnectionPool.tcp.maxConnections",
            "inboundConnectionPool.http.http1MaxPendingRequests",
            "inboundConnectionPool.http.http2MaxRequests",
            "inboundConnectionPool.http.maxRequestsPerConnection",
            "inboundConnectionPool.http.idleTimeout",
            "inboundConnectionPool.tcp.connectTimeout",
        ],
        &[
            "meshd/tests/proxy/care.rs::the_bounds_of_an_application_hold_for_plain_http_that_was_caught",
            "meshd/tests/proxy/care.rs::the_bounds_of_an_application_hold_for_plain_bytes_that_were_caught",
        ],
    ),
    seen(
        &[
            "Sidecar ingress[].port.number",
            "Sidecar ingress[].port.protocol",
            "Sidecar ingress[].defaultEndpoint",
        ],
        &["meshd/core/src/compile/tests.rs::a_sidecar_sends_what_comes_in_elsewhere_and_bounds_it"],
    ),
    // How an instance is chosen.
    seen(
        &["loadBalancer.simple"],
        &[
            "tests/conformance/cases/lb-random",
            "meshd/core/src/balance/tests.rs::round_robin_takes_turns",
            "meshd/core/src/balance/tests.rs::least_request_spares_a_slow_endpoint_and_round_robin_does_not",
        ],
    ),
    seen(
        &[
            "consistentHash.httpHeaderName",
            "consistentHash.httpCookie.name",
            "consistentHash.httpCookie.path",
            "consistentHash.httpCookie.ttl",
            "consistentHash.httpQueryParameterName",
            "consistentHash.useSourceIp",
            "consistentHash.maglev.tableSize",
            "consistentHash.minimumRingSize",
            "consistentHash.ringHash.minimumRingSize",
        ],
        &[
            "tests/conformance/cases/hash-kinds",
            "meshd/core/src/balance/tests/hashing.rs::who_leaves_a_ring_moves_only_its_own_keys_and_all_others_get_some",
        ],
    ),
    seen(
        &["consistentHash.httpCookie.attributes[].name", "consistentHash.httpCookie.attributes[].value"],
        &["meshd/core/src/balance/key.rs::a_made_cookie_has_the_attributes_asked_for"],
    ),
    seen(
        &["localityLbSetting.distribute[].from", "localityLbSetting.distribute[].to"],
        &[
            "tests/conformance/cases/locality-weights",
            "meshd/core/src/balance/tests.rs::distribute_gives_fixed_shares_and_nothing_to_the_unnamed",
        ],
    ),
    seen(
        &[
            "localityLbSetting.enabled",
            "localityLbSetting.failover[].from",
            "localityLbSetting.failover[].to",
        ],
        &[
            "meshd/core/src/balance/tests.rs::failover_prefers_the_near_and_spills_over_as_they_fail",
            "meshd/core/src/balance/tests.rs::a_region_that_helps_comes_before_others",
        ],
    ),
    seen(
        &["localityLbSetting.failoverPriority"],
        &["meshd/core/src/compile/tests/destination.rs::failover_priority_ranks_by_shared_labels"],
    ),
    seen(
        &[
            "loadBalancer.warmup.duration",
            "loadBalancer.warmup.minimumPercent",
            "loadBalancer.warmupDurationSecs",
        ],
        &["meshd/core/src/balance/warmup.rs::a_newcomer_gets_its_share_by_and_by"],
    ),
    seen(
        &["loadBalancer.warmup.aggression"],
        &["meshd/core/src/balance/warmup.rs::aggression_lets_it_grow_faster_at_first"],
    ),
    // When an instance is left alone.
    seen(
        &[
            "outlierDetection.consecutive5xxErrors",
            "outlierDetection.consecutiveGatewayErrors",
            "outlierDetection.maxEjectionPercent",
            "outlierDetection.minHealthPercent",
        ],
        &["tests/conformance/cases/outlier-kinds"],
    ),
    seen(
        &["outlierDetection.interval", "outlierDetection.baseEjectionTime"],
        &["tests/conformance/cases/outlier-times"],
    ),
    seen(
        &[
            "outlierDetection.splitExternalLocalOriginErrors",
            "outlierDetection.consecutiveLocalOriginFailures",
        ],
        &["meshd/core/src/resilience/outlier/tests.rs::local_failures_count_apart_where_a_rule_says_so"],
    ),
    seen(
        &["outlierDetection.outlierDetectionHttpErrorCodes"],
        &["meshd/core/src/resilience/outlier/tests.rs::the_codes_of_a_rule_are_the_failures"],
    ),
    // TLS and what goes before it.
    seen(
        &[
            "trafficPolicy.tls.mode",
            "portLevelSettings[].tls.mode",
            "trafficPolicy.tls.sni",
            "portLevelSettings[].tls.sni",
        ],
        &["meshd/tests/proxy/origination.rs::the_host_is_asked_for_and_checked"],
    ),
    seen(
        &[
            "trafficPolicy.tls.subjectAltNames",
            "portLevelSettings[].tls.subjectAltNames",
            "trafficPolicy.tls.caCertificates",
            "portLevelSettings[].tls.caCertificates",
            "trafficPolicy.tls.caCrl",
            "portLevelSettings[].tls.caCrl",
            "trafficPolicy.tls.insecureSkipVerify",
            "portLevelSettings[].tls.insecureSkipVerify",
            "ServiceEntry subjectAltNames",
            "serviceAccount",
            "WorkloadEntry serviceAccount",
        ],
        &["meshd/tests/proxy/origination.rs::names_roots_and_lists_decide_as_the_rule_says"],
    ),
    seen(
        &[
            "trafficPolicy.tls.clientCertificate",
            "portLevelSettings[].tls.clientCertificate",
            "trafficPolicy.tls.privateKey",
            "portLevelSettings[].tls.privateKey",
        ],
        &[
            "meshd/tests/proxy/origination.rs::a_client_certificate_is_shown_and_a_renewed_one_without_restart",
        ],
    ),
    seen(
        &["trafficPolicy.tls.credentialName", "portLevelSettings[].tls.credentialName"],
        &["meshd/tests/proxy/origination.rs::a_secret_is_a_folder_of_the_host"],
    ),
    seen(
        &["proxyProtocol.version"],
        &[
            "meshd/tests/proxy/origination.rs::the_proxy_header_comes_before_the_handshake_and_names_each_caller",
        ],
    ),
    seen(
        &["tunnel.protocol", "tunnel.targetHost", "tunnel.targetPort"],
        &[
            "meshd/tests/proxy/detour.rs::connect_leads_to_the_target_over_either_http",
            "meshd/tests/proxy/detour.rs::a_post_carries_both_directions",
        ],
    ),
    // What a gateway shows, and whom it lets in.
    seen(
        &[
            "servers[].tls.caCertificates",
            "servers[].tls.caCrl",
            "servers[].tls.subjectAltNames",
            "servers[].tls.verifyCertificateSpki",
            "servers[].tls.verifyCertificateHash",
            "servers[].tls.caCertCredentialName",
            "servers[].tls.tlsCertificates[].caCertificates",
        ],
        &["meshd/tests/proxy/doors.rs::mutual_servers_let_in_whom_their_rules_name"],
    ),
    seen(
        &[
            "servers[].tls.privateKey",
            "servers[].tls.tlsCertificates[].privateKey",
            "servers[].tls.tlsCertificates[].serverCertificate",
            "servers[].tls.minProtocolVersion",
            "servers[].tls.maxProtocolVersion",
            "servers[].tls.cipherSuites",
        ],
        &["meshd/tests/proxy/doors.rs::https_servers_are_chosen_by_sni_and_show_their_own_certificates"],
    ),
    // Endpoints: addresses, ports and weights are what is dialled and how often.
    seen(
        &[
            "ServiceEntry endpoints[].address",
            "WorkloadEntry address",
            "ServiceEntry endpoints[].ports",
            "WorkloadEntry ports",
            "ServiceEntry ports[].targetPort",
            "ServiceEntry ports[].name",
            "ServiceEntry resolution",
            "ServiceEntry workloadSelector.labels",
        ],
        &[
            "meshd/core/src/compile/tests.rs::service_entries_have_plain_endpoints_names_and_selected_instances",
            "meshd/tests/proxy/origination.rs::the_name_of_each_request_is_resolved_where_the_rule_says_so",
        ],
    ),
    seen(
        &[
            "ServiceEntry endpoints[].weight",
            "WorkloadEntry weight",
            "ServiceEntry endpoints[].locality",
            "WorkloadEntry locality",
        ],
        &["tests/conformance/cases/locality-weights"],
    ),
    // Requests.
    seen(
        &["http[].retries.retryOn", "defaultHttpRetryPolicy.retryOn"],
        &["tests/conformance/cases/retry-conditions"],
    ),
    seen(
        &["http[].retries.backoff", "defaultHttpRetryPolicy.backoff"],
        &[
            "meshd/core/src/resilience/retry/tests.rs::backoff_draws_below_a_bound_that_doubles_up_to_ten_times_the_base",
        ],
    ),
    seen(
        &["http[].retries.retryIgnorePreviousHosts", "defaultHttpRetryPolicy.retryIgnorePreviousHosts"],
        &["meshd/core/src/balance/tests.rs::a_retry_goes_elsewhere_while_there_is_an_elsewhere"],
    ),
    seen(
        &["VirtualService http[].name"],
        &[
            "meshd/core/src/compile/tests/reference.rs::a_compiled_rule_takes_the_route_that_a_naive_reading_takes",
        ],
    ),
    // A port chooses whom a block of settings is for: what is in the block is seen above.
    seen(
        &["portLevelSettings[].port.number"],
        &["meshd/core/src/compile/tests.rs::policies_of_a_port_inherit_nothing_and_subsets_replace_blocks"],
    ),
    seen(
        &["http[].headers.response.remove", "http[].route[].headers.response.remove"],
        &["tests/conformance/cases/headers-forms"],
    ),
    seen(&["fault.abort.grpcStatus"], &["tests/conformance/cases/fault-forms"]),
    // Values of which only one is taken, and that one is how it is anyway.
    Seen {
        fields: &["Gateway servers[].tls.insecureSkipVerify", "MeshConfig enableAutoMtls"],
        tests: &["meshctl/tests/cli/offline.rs::one_value_of_a_field_is_taken_and_the_other_named"],
        alone: true,
    },
    Seen {
        fields: &["Sidecar ingress[].captureMode"],
        tests: &["meshctl/tests/cli/offline.rs::one_value_of_a_field_is_taken_and_the_other_named"],
        alone: true,
    },
    seen(
        &[
            "Sidecar inboundConnectionPool.tcp.idleTimeout",
            "Sidecar inboundConnectionPool.tcp.maxConnectionDuration",
            "Sidecar inboundConnectionPool.tcp.tcpKeepalive*",
        ],
        &["meshd/tests/proxy/care.rs::times_of_an_application_hold_for_plain_bytes_that_were_caught"],
    ),
    seen(
        &[
            "Sidecar inboundConnectionPool.http.maxConcurrentStreams",
            "Sidecar inboundConnectionPool.http.http2KeepAlive*",
        ],
        &["meshd/tests/proxy/care.rs::streams_to_an_application_are_bounded_where_its_sidecar_says_so"],
    ),
    // What is told of traffic.
    Seen {
        fields: &[
            "Telemetry targetRef.kind",
            "Telemetry targetRef.group",
            "Telemetry targetRefs[].kind",
            "Telemetry targetRefs[].group",
        ],
        tests: &["proto/src/support/tests.rs::languages_within_fields_are_refused_by_name_and_place"],
        alone: true,
    },
    Seen {
        fields: &["Telemetry metrics[].overrides[].tagOverrides{}.operation"],
        tests: &["meshd/core/src/compile/tests/telemetry.rs::labels_are_set_and_taken_away"],
        alone: true,
    },
    seen(
        &["Telemetry selector*", "Telemetry targetRef*"],
        &["meshd/core/src/compile/tests/telemetry.rs::the_nearest_telemetry_counts_field_by_field"],
    ),
    seen(
        &[
            "Telemetry tracing*",
            "MeshConfig enableTracing",
            "MeshConfig defaultProviders.tracing",
            "MeshConfig extensionProviders[].name",
            "MeshConfig extensionProviders[].opentelemetry*",
        ],
        &[
            "meshd/tests/proxy/telemetry/spans.rs::a_span_is_sent_and_the_application_is_told_of_it",
            "meshd/tests/proxy/telemetry/spans.rs::what_is_not_sampled_is_passed_on_and_not_sent",
            "meshd/tests/proxy/telemetry/spans.rs::spans_are_sent_over_grpc_where_a_provider_says_nothing_else",
        ],
    ),
    Seen {
        fields: &["MeshConfig extensionProviders[].prometheus*"],
        tests: &["meshd/core/src/compile/tests/telemetry.rs::numbers_go_to_prometheus_or_nowhere"],
        alone: true,
    },
    seen(
        &["Telemetry metrics*", "MeshConfig defaultProviders.metrics"],
        &["meshd/src/telemetry/tests.rs::rules_switch_metrics_off_and_change_labels"],
    ),
    seen(
        &[
            "Telemetry accessLogging*",
            "MeshConfig accessLog*",
            "MeshConfig defaultProviders.accessLogging",
            "MeshConfig extensionProviders[].envoyFileAccessLog*",
        ],
        &[
            "meshd/tests/proxy/telemetry/logs.rs::requests_are_logged_where_rules_say_and_when",
            "meshd/src/telemetry/tests.rs::lines_have_the_form_that_a_rule_gives_them",
        ],
    ),
    seen(&["http[].redirect.derivePort"], &["tests/conformance/cases/redirect-forms"]),
    seen(
        &["MeshConfig protocolDetectionTimeout"],
        &["meshd/tests/proxy/protocols.rs::an_undeclared_port_is_told_by_its_first_bytes"],
    ),
];

/// Finds who sees a field.
pub(super) fn of(kind: Kind, path: &str) -> Option<Seen> {
    SEEN.iter().copied().find(|seen| seen.fields.iter().any(|field| is(field, kind, path)))
}

/// `Kind path` is that path, `Kind path*` all that begin so, `path` the end of any.
fn is(field: &str, kind: Kind, path: &str) -> bool {
    if let Some((of, whole)) = field.split_once(' ') {
        if let Some(begin) = whole.strip_suffix('*') {
            return of == kind.to_string() && path.starts_with(begin);
        }
        return of == kind.to_string() && whole == path;
    }
    path.strip_suffix(field).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Returns what is named here and is not there.
pub(super) fn broken(known: &[(Kind, String)]) -> Vec<String> {
    let mut broken = Vec::new();
    for seen in SEEN {
        for field in seen.fields {
            if !known.iter().any(|(kind, path)| is(field, *kind, path)) {
                broken.push(format!("no field is called {field}"));
            }
        }
        broken.extend(
            seen.tests.iter().filter(|test| !exists(test)).map(|test| format!("there is no test {test}")),
        );
    }
    broken
}

fn exists(test: &str) -> bool {
    match test.split_once("::") {
        Some((file, name)) => {
            std::fs::read_to_string(root().join(file)).is_ok_and(|text| text.contains(&format!("fn {name}(")))
        }
        None => root().join(test).join("expected.json").exists(),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
