//! Every key of `meshd.toml` in one table: default, unit and a sentence. The file that `meshd config` prints, the
//! page in the documentation and the values used for absent keys all come from here.

use std::fmt::Write as _;

/// One key of `meshd.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The table it stands in, such as `host.workload`; `[[listener]]` for rows of a list.
    pub table: &'static str,
    /// Its name in the table.
    pub name: &'static str,
    /// Its default, written as in the file; for rows of a list an example.
    pub default: &'static str,
    /// What the value counts or holds, such as `seconds`.
    pub unit: &'static str,
    /// What it does, and why the default is what it is.
    pub about: &'static str,
}

const fn key(
    table: &'static str,
    name: &'static str,
    default: &'static str,
    unit: &'static str,
    about: &'static str,
) -> Key {
    Key { table, name, default, unit, about }
}

/// All keys, in the order of the printed file.
pub const KEYS: &[Key] = &[
    key(
        "host",
        "name",
        r#""""#,
        "host name",
        "Name of this host in the mesh. Empty: the kernel's host name.",
    ),
    key(
        "host",
        "data",
        r#""/var/lib/meshd""#,
        "folder",
        "Keys, state and last good rules. Kept over restarts and upgrades.",
    ),
    key(
        "host",
        "advertise",
        r#""""#,
        "IP or IP:PORT",
        "Where other hosts reach the mesh port. Empty: the address this host uses toward the server it joined, or that of its default route.",
    ),
    key(
        "host",
        "locality",
        r#""""#,
        "region/zone/subzone",
        "Where the host stands; balancing prefers what is near. Empty: unknown.",
    ),
    key(
        "host",
        "labels",
        "{}",
        "table of texts",
        "Labels of the host, which selectors and sourceLabels match.",
    ),
    key(
        "host",
        "voter",
        r#""auto""#,
        "auto, never, prefer",
        "Whether the host may keep the mesh's shared state. auto: when a voter is missing.",
    ),
    key(
        "host.workload",
        "namespace",
        r#""default""#,
        "DNS label",
        "Namespace of callers on this host whose workload is not known; short names resolve in it.",
    ),
    key(
        "host.workload",
        "account",
        r#""default""#,
        "name",
        "Service account of these callers: the last part of the SPIFFE id they show.",
    ),
    key(
        "host.workload",
        "labels",
        "{}",
        "table of texts",
        "Labels of these callers, which sourceLabels match.",
    ),
    key(
        "listen",
        "mesh",
        r#""[::]:15008""#,
        "IP:PORT, TCP and UDP",
        "Mutual TLS between hosts. [::] takes IPv4 as well; where the host has no IPv6, 0.0.0.0 is used.",
    ),
    key(
        "listen",
        "outbound",
        r#"["127.0.0.1:15001", "[::1]:15001"]"#,
        "list of IP:PORT",
        "Where intercepted connections of local processes arrive.",
    ),
    key(
        "listen",
        "inbound",
        r#"["0.0.0.0:15006", "[::]:15006"]"#,
        "list of IP:PORT",
        "Where intercepted connections to local services arrive.",
    ),
    key(
        "listen",
        "admin",
        r#""127.0.0.1:15000""#,
        "IP:PORT, empty: off",
        "Read-only state of this meshd; shows no secret.",
    ),
    key(
        "listen",
        "metrics",
        r#"["127.0.0.1:15020", "127.0.0.1:15090"]"#,
        "list of IP:PORT",
        "Prometheus metrics and readiness.",
    ),
    key(
        "listen",
        "dns",
        r#"["127.0.0.1:15053", "[::1]:15053"]"#,
        "list of IP:PORT, UDP and TCP",
        "DNS: answers names of the mesh and forwards the rest.",
    ),
    key(
        "listen",
        "http_proxy",
        r#""127.0.0.1:15080""#,
        "IP:PORT, empty: off",
        "Explicit HTTP proxy, for http_proxy=... where nothing is intercepted.",
    ),
    key(
        "listen",
        "socket",
        r#""/run/meshd/meshd.sock""#,
        "path",
        "Unix socket on which meshctl reaches this meshd. With --data DIR and without this key: DIR/meshd.sock.",
    ),
    key(
        "[[listener]]",
        "address",
        r#""127.0.0.1:9080""#,
        "IP:PORT, required",
        "Local address that stands for something in the mesh.",
    ),
    key(
        "[[listener]]",
        "service_port",
        "9080",
        "port",
        "Service port whose rules apply; the Host of a request says which service. Either this or `to`.",
    ),
    key(
        "[[listener]]",
        "to",
        r#""reviews.default:9080""#,
        "HOST:PORT",
        "The one service that the address stands for. Either this or `service_port`.",
    ),
    key(
        "[[listener]]",
        "protocol",
        r#""auto""#,
        "auto, http, tcp, tls",
        "What is spoken on it. auto: what the service port declares, else the first bytes.",
    ),
    key(
        "[[listener]]",
        "workload",
        r#"{ namespace = "default", account = "default" }"#,
        "table",
        "Who calls through it: namespace, account, labels, locality. Default: host.workload.",
    ),
    key(
        "intercept",
        "mode",
        r#""auto""#,
        "auto, on, off",
        "Whether nftables redirects traffic to meshd. auto: where the kernel and privileges allow; on: refuse to start without.",
    ),
    key("intercept", "mark", "0x6d65", "number", "Mark of meshd's own sockets, which are never intercepted."),
    key(
        "intercept",
        "exclude_ports",
        "[22]",
        "list of ports",
        "TCP ports that are never intercepted, in either direction. Port 22 is exempt even when it is not listed.",
    ),
    key(
        "intercept",
        "exclude_cidrs",
        "[]",
        "list of ranges",
        "Destinations that are never intercepted, such as \"10.1.0.0/16\".",
    ),
    key(
        "intercept",
        "exclude_uids",
        "[]",
        "list of user ids",
        "Users whose connections are never intercepted.",
    ),
    key(
        "intercept",
        "inbound",
        "true",
        "true or false",
        "Whether plain connections from other hosts to the ports of local services are intercepted.",
    ),
    key(
        "intercept",
        "dns",
        "true",
        "true or false",
        "Whether DNS questions of local processes (port 53) go through meshd.",
    ),
    key(
        "dns",
        "upstreams",
        "[]",
        "list of IP or IP:PORT",
        "Resolvers for all other names. Empty: those of /etc/resolv.conf when meshd starts.",
    ),
    key(
        "dns",
        "timeout_ms",
        "4000",
        "milliseconds",
        "After this long without an answer from the resolvers, the caller gets SERVFAIL. Below the 5 s after which most callers ask again.",
    ),
    key("dns", "ttl_seconds", "5", "seconds", "How long callers may remember an answer about the mesh."),
    key(
        "proxy",
        "workers",
        "0",
        "threads",
        "Threads that carry traffic, each with its own connections. 0: one per core.",
    ),
    key(
        "proxy",
        "transport",
        r#""tcp""#,
        "tcp, quic",
        "How traffic travels between hosts. tcp costs less CPU; quic suits links that lose packets, and goes over TCP where UDP is dropped.",
    ),
    key("proxy", "drain_seconds", "30", "seconds", "How long open connections may finish when meshd stops."),
    key(
        "proxy",
        "access_log",
        r#""off""#,
        "off, text, json",
        "One line on standard output for each request.",
    ),
    key(
        "proxy",
        "proxy_header_from",
        "[]",
        "address ranges",
        "Load balancers in front of gateways here: each of their connections must begin with a PROXY header (version 1 or 2), which says where the visitor is. What others send is never read as one.",
    ),
    key(
        "proxy",
        "tap",
        r#""redacted""#,
        "off, redacted, all",
        "What `meshctl tap` may show of requests. redacted: without values that let somebody in (authorization, cookies, tokens in queries); all: these too, where asked for.",
    ),
    key(
        "limits",
        "head_seconds",
        "10",
        "seconds",
        "Until a request's head must be complete, also the first on a connection; then 408.",
    ),
    key(
        "limits",
        "idle_seconds",
        "3600",
        "seconds",
        "How long a connection may stay open without a request. Envoy's default.",
    ),
    key(
        "limits",
        "sniff_ms",
        "50",
        "milliseconds",
        "How long the first bytes are awaited where no protocol is declared; then the connection is TCP.",
    ),
    key(
        "limits",
        "head_bytes",
        "61440",
        "bytes",
        "Largest head of a request or response, all fields together; then 431. Envoy's default.",
    ),
    key("limits", "headers", "100", "fields", "Most fields in a head; then 431. Envoy's default."),
    key("limits", "uri_bytes", "16384", "bytes", "Longest request target; then 414."),
    key(
        "limits",
        "http2_streams",
        "100",
        "streams",
        "Most requests at a time on one HTTP/2 connection of an application. Does not apply between hosts.",
    ),
    key(
        "limits",
        "hop_streams",
        "10000",
        "streams",
        "Most requests at a time on one connection from another host, which opens further ones beyond. Only keeps a bug from being endless.",
    ),
    key(
        "limits",
        "http2_control_frames",
        "200",
        "frames a second",
        "PING, SETTINGS and PRIORITY frames of one HTTP/2 connection, beside those that answer what meshd sends; then GOAWAY.",
    ),
    key(
        "limits",
        "body_seconds",
        "30",
        "seconds",
        "How long a request's body may fall behind body_rate while an endpoint waits for it; then 408. Not for gRPC.",
    ),
    key(
        "limits",
        "body_rate",
        "100",
        "bytes a second",
        "Least speed of a request's body, after body_seconds. Slower ones hold endpoints up.",
    ),
    key(
        "limits",
        "connections",
        "0",
        "connections",
        "Most open connections of one listener; more are closed at once. 0: what the limit of open files allows.",
    ),
    key(
        "limits",
        "connections_per_source",
        "0",
        "connections",
        "Most open connections of one listener from one other host. 0: half of connections.",
    ),
    key(
        "limits",
        "hops",
        "16",
        "times",
        "How often a request may be sent on by a meshd before it counts as going in a circle; then 508.",
    ),
    key(
        "limits",
        "memory_bytes",
        "0",
        "bytes",
        "Memory meshd may use. From 85 % on, new connections are closed and new requests get 503 with retry-after; from 95 % on, large bodies are cut. 0: four fifths of what its control group, else the machine, has.",
    ),
    key(
        "acme",
        "directory",
        r#""""#,
        "URL, empty: off",
        "Authority that certificates of gateways are ordered from (ACME), such as \"https://acme-v02.api.letsencrypt.org/directory\".",
    ),
    key(
        "acme",
        "contact",
        "[]",
        "URLs",
        "Where the authority may write to, such as \"mailto:ops@example.com\".",
    ),
    key(
        "acme",
        "agree_to_terms",
        "false",
        "true or false",
        "Whether you agree to the authority's terms of service; most make no account without.",
    ),
    key(
        "acme",
        "roots",
        r#""""#,
        "file",
        "Roots of the authority's own certificate. Empty: those of the system.",
    ),
    key(
        "acme",
        "challenge",
        r#""auto""#,
        "auto, http-01, tls-alpn-01",
        "How the authority sees that a name leads here: it asks port 80 (http-01) or 443 (tls-alpn-01) of the name, which must be, or lead to, a port of a Gateway on this host. auto: tls-alpn-01 where a server has the name, else http-01; after a failure the other.",
    ),
    key(
        "[[acme.certificate]]",
        "secret",
        r#""shop""#,
        "name",
        "The secret that the certificate is put into and renewed in: the credentialName of rules.",
    ),
    key(
        "[[acme.certificate]]",
        "names",
        r#"["shop.example.com"]"#,
        "host names",
        "The names that it is for. No wildcards: an authority sees those in DNS only.",
    ),
    key(
        "services",
        "directory",
        r#""/etc/meshd/services.d""#,
        "folder",
        "Files (*.toml) with the services of this host; watched.",
    ),
    key(
        "log",
        "level",
        r#""info""#,
        "error, warn, info, debug, trace",
        "How much is logged; also per module, such as \"info,meshd=debug\".",
    ),
    key(
        "log",
        "format",
        r#""auto""#,
        "auto, text, json",
        "auto: colour on a terminal, plain text elsewhere.",
    ),
];

/// Returns a `meshd.toml` in which every key stands with its default, commented out.
pub fn default_document() -> String {
    let mut out = String::from(
        "# meshd.toml: facts of this host. Every key is optional and stands here with its default.\n\
         # Rules for the whole mesh are not here: they are applied with `meshctl apply`.\n",
    );
    let mut table = "";
    for key in KEYS {
        if key.table != table {
            table = key.table;
            if table.starts_with('[') {
                let what = match table {
                    "[[listener]]" => "local address that stands for a service",
                    _ => "certificate that is ordered",
                };
                let _ = write!(out, "\n# One for each {what}; no default:\n#");
                let _ = writeln!(out, "{table}");
            } else {
                let _ = writeln!(out, "\n[{table}]");
            }
        }
        let _ = writeln!(out, "# {} ({})\n#{} = {}", key.about, key.unit, key.name, key.default);
    }
    out
}

/// Returns the keys as a Markdown table, for the documentation.
pub fn reference() -> String {
    let mut out = String::from("| key | default | unit | meaning |\n|---|---|---|---|\n");
    for key in KEYS {
        let default =
            if key.table.starts_with('[') { "–".to_owned() } else { format!("`{}`", key.default) };
        let path = format!("{}.{}", key.table, key.name);
        let _ = writeln!(out, "| `{path}` | {default} | {} | {} |", key.unit, key.about);
    }
    out
}
