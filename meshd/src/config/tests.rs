use super::*;

fn parse(text: &str) -> Result<Config, Vec<String>> {
    Config::parse("meshd.toml", text, &Overrides::default())
        .map_err(|all| all.iter().map(ToString::to_string).collect())
}

#[test]
fn an_empty_file_is_a_whole_configuration() {
    let config = parse("").unwrap();
    assert_eq!(config.listen.mesh.to_string(), "[::]:15008");
    assert_eq!(config.listen.outbound.len(), 2);
    assert_eq!(config.intercept.mark, 0x6d65);
    assert_eq!(config.proxy.drain, Duration::from_secs(30));
    assert_eq!(config.limits.head_bytes, 60 * 1024);
    assert_eq!(config.host.workload.namespace, "default");
    assert!(config.listeners.is_empty() && config.host.advertise.is_none() && !config.host.name.is_empty());
}

#[test]
fn the_printed_file_says_the_defaults() {
    let printed = default_document();
    assert_eq!(parse(&printed).unwrap(), Config::default());
    let keys = |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).map(str::to_owned);
    let spoken: String =
        printed.lines().map(|line| keys(line).unwrap_or_else(|| line.to_owned()) + "\n").collect();
    // The example row names both of the keys of which one is needed.
    let spoken = spoken.replace("to = \"reviews.default:9080\"\n", "");
    // A row needs somebody to order from.
    let spoken =
        spoken.replace("\ndirectory = \"\"\n", "\ndirectory = \"https://ca.example.com/directory\"\n");
    let mut config = parse(&spoken).unwrap();
    assert_eq!(config.acme.take().expect("it is on").certificates.len(), 1);
    assert_eq!(config.listeners.len(), 1);
    config.listeners.clear();
    assert_eq!(config, Config::default());
}

#[test]
fn every_key_has_a_unit_a_sentence_and_a_row_in_the_reference() {
    for key in KEYS {
        assert!(!key.unit.is_empty() && key.about.ends_with('.'), "{key:?}");
        assert!(reference().contains(&format!("`{}.{}`", key.table, key.name)), "{key:?}");
    }
}

#[test]
fn every_key_changes_the_configuration() {
    let others = [
        ("host", "name = \"web-1\""),
        ("host", "data = \"/srv/mesh\""),
        ("host", "advertise = \"10.0.0.7:4000\""),
        ("host", "locality = \"eu/a\""),
        ("host", "labels = { rack = \"7\" }"),
        ("host", "voter = \"never\""),
        ("host.workload", "namespace = \"shop\""),
        ("host.workload", "account = \"batch\""),
        ("host.workload", "labels = { app = \"x\" }"),
        ("listen", "mesh = \"0.0.0.0:16008\""),
        ("listen", "outbound = \"127.0.0.1:16001\""),
        ("listen", "inbound = []"),
        ("listen", "admin = \"\""),
        ("listen", "metrics = []"),
        ("listen", "dns = []"),
        ("listen", "http_proxy = \"\""),
        ("listen", "socket = \"/tmp/s\""),
        ("intercept", "mode = \"off\""),
        ("intercept", "mark = 7"),
        ("intercept", "exclude_ports = [25]"),
        ("intercept", "exclude_cidrs = [\"10.0.0.0/8\"]"),
        ("intercept", "exclude_uids = [1000]"),
        ("intercept", "inbound = false"),
        ("intercept", "dns = false"),
        ("dns", "upstreams = [\"9.9.9.9\"]"),
        ("dns", "timeout_ms = 1000"),
        ("dns", "ttl_seconds = 1"),
        ("proxy", "workers = 3"),
        ("proxy", "transport = \"quic\""),
        ("proxy", "drain_seconds = 5"),
        ("proxy", "access_log = \"json\""),
        ("proxy", "proxy_header_from = [\"10.0.0.0/8\"]"),
        ("proxy", "tap = \"off\""),
        ("limits", "head_seconds = 5"),
        ("limits", "idle_seconds = 5"),
        ("limits", "sniff_ms = 5"),
        ("limits", "head_bytes = 8192"),
        ("limits", "headers = 50"),
        ("limits", "uri_bytes = 1024"),
        ("limits", "http2_streams = 5"),
        ("limits", "http2_control_frames = 50"),
        ("limits", "body_seconds = 5"),
        ("limits", "body_rate = 5"),
        ("limits", "connections = 5"),
        ("limits", "connections_per_source = 5"),
        ("limits", "hops = 5"),
        ("limits", "memory_bytes = 134217728"),
        ("limits", "hop_streams = 500"),
        ("acme", "directory = \"https://ca.example.com/directory\""),
        ("services", "directory = \"/srv/services\""),
        ("log", "level = \"debug\""),
        ("log", "format = \"json\""),
    ];
    for (table, line) in others {
        let config = parse(&format!("[{table}]\n{line}\n")).unwrap();
        assert_ne!(config, Config::default(), "{table}: {line}");
    }
    let off = parse("[acme]\ndirectory = \"https://ca.example.com/directory\"\n").unwrap();
    let orders = [
        "contact = [\"mailto:ops@example.com\"]",
        "agree_to_terms = true",
        "roots = \"/etc/ca.pem\"",
        "challenge = \"http-01\"",
    ];
    for line in orders {
        let text = format!("[acme]\ndirectory = \"https://ca.example.com/directory\"\n{line}\n");
        assert_ne!(parse(&text).unwrap(), off, "{line}");
    }
    let named = KEYS.iter().filter(|key| !key.table.starts_with('[')).count();
    assert_eq!(others.len() + orders.len(), named, "a key is missing from this test");
}

#[test]
fn unknown_keys_are_errors_with_the_nearest_one() {
    let text = "[intercept]\nexclude_port = [80]\n\n[lisen]\nmesh = \"[::]:1\"\n";
    let findings = parse(text).unwrap_err();
    let newer = concat!("; or it is a key of a newer meshd: this is ", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        findings,
        [
            format!(
                "meshd.toml:2:1: intercept.exclude_port: unknown key; did you mean \"exclude_ports\"?{newer}"
            ),
            format!("meshd.toml:4:2: lisen: unknown key; did you mean \"listen\"?{newer}"),
        ]
    );
}

#[test]
fn everything_wrong_is_reported_where_it_stands() {
    let text = concat!(
        "[host]\n",
        "voter = \"autos\"\n",
        "advertise = \"0.0.0.0\"\n",
        "[listen]\n",
        "admin = \"0.0.0.0:15000\"\n",
        "[intercept]\n",
        "mark = 0\n",
        "exclude_ports = [22, 70000, \"http\"]\n",
        "[proxy]\n",
        "drain_seconds = \"30s\"\n",
    );
    let findings = parse(text).unwrap_err();
    assert_eq!(
        findings,
        [
            "meshd.toml:2:9: host.voter: \"autos\" is not one of \"auto\", \"never\", \"prefer\"; did you mean \"auto\"?",
            "meshd.toml:3:13: host.advertise: \"0.0.0.0\" cannot be dialled by other hosts; write the address they reach",
            "meshd.toml:5:9: listen.admin: \"0.0.0.0:15000\" is not a loopback address; the admin port never leaves the host",
            "meshd.toml:7:8: intercept.mark: must lie between 1 and 4294967295, is 0",
            "meshd.toml:8:22: intercept.exclude_ports: must lie between 1 and 65535, is 70000",
            "meshd.toml:8:29: intercept.exclude_ports: is a text, not a whole number",
            "meshd.toml:10:17: proxy.drain_seconds: is a text, not a whole number",
        ]
    );
}

#[test]
fn broken_syntax_has_a_place() {
    let findings = parse("[host]\nname = \n").unwrap_err();
    assert!(findings[0].starts_with("meshd.toml:2:"), "{findings:?}");
}

#[test]
fn two_keys_cannot_claim_one_address() {
    let text = concat!(
        "[listen]\nhttp_proxy = \"127.0.0.1:15006\"\n",
        "[[listener]]\naddress = \"127.0.0.1:9080\"\nservice_port = 9080\n",
        "[[listener]]\naddress = \"0.0.0.0:9080\"\nto = \"reviews.default:9080\"\n",
    );
    let findings = parse(text).unwrap_err();
    assert_eq!(
        findings,
        [
            "meshd.toml:2:1: listen.http_proxy: 127.0.0.1:15006 is taken by listen.inbound (0.0.0.0:15006)",
            "meshd.toml:7:1: listener[1].address: 0.0.0.0:9080 is taken by listener[0].address (127.0.0.1:9080)",
        ]
    );
}

#[test]
fn listeners_name_what_they_stand_for_and_who_calls() {
    let text = concat!(
        "[host]\nlocality = \"eu/a\"\n",
        "[[listener]]\naddress = \"127.0.0.1:0\"\nto = \"Reviews.default.:9080\"\nprotocol = \"tcp\"\n",
        "workload = { namespace = \"shop\", labels = { version = \"v1\" } }\n",
    );
    let config = parse(text).unwrap();
    let listener = &config.listeners[0];
    assert_eq!(listener.stands_for, StandsFor::Service { host: "reviews.default".into(), port: 9080 });
    assert_eq!(listener.protocol, Protocol::Tcp);
    assert_eq!(listener.workload.namespace, "shop");
    assert_eq!(listener.workload.account, "default");
    assert_eq!(listener.workload.locality.to_string(), "eu/a");
}

#[test]
fn a_listener_needs_one_target() {
    let findings = parse("[[listener]]\naddress = \"127.0.0.1:1\"\n").unwrap_err();
    assert!(findings[0].contains("exactly one of service_port"), "{findings:?}");
    let findings = parse("[[listener]]\nservice_port = 80\n").unwrap_err();
    assert_eq!(findings, ["meshd.toml:1:1: listener[0].address: is required"]);
}

#[test]
fn ssh_stays_exempt_when_the_list_forgets_it() {
    assert_eq!(parse("[intercept]\nexclude_ports = []").unwrap().intercept.exclude_ports, [22]);
}

#[test]
fn the_data_folder_of_the_command_line_takes_the_socket_along() {
    let overrides = Overrides { data: Some("/tmp/a".into()) };
    let config = Config::parse("f", "[host]\ndata = \"/x\"", &overrides).unwrap();
    assert_eq!(
        (config.host.data.to_str(), config.listen.socket.to_str()),
        (Some("/tmp/a"), Some("/tmp/a/meshd.sock"))
    );
    let config = Config::parse("f", "[listen]\nsocket = \"/x.sock\"", &overrides).unwrap();
    assert_eq!(config.listen.socket.to_str(), Some("/x.sock"));
}

#[test]
fn an_absent_default_file_is_no_error_but_a_named_one_is() {
    let missing = Path::new("/nonexistent/meshd.toml");
    let error = Config::load(Some(missing), &Overrides::default()).unwrap_err();
    assert!(error.to_string().starts_with("cannot read /nonexistent/meshd.toml"), "{error}");
}

#[test]
fn a_certificate_is_ordered_for_names_that_an_authority_can_see() {
    let text = concat!(
        "[acme]\n",
        "directory = \"https://ca.example.com/directory\"\n",
        "[[acme.certificate]]\n",
        "secret = \"shop\"\n",
        "names = [\"Shop.example.com\", \"www.example.com\"]\n",
    );
    let acme = parse(text).unwrap().acme.expect("it is on");
    assert_eq!(acme.challenge, Challenge::Auto);
    let names = vec!["shop.example.com".to_owned(), "www.example.com".to_owned()];
    assert_eq!(acme.certificates, [Ordered { secret: "shop".into(), names }]);

    let text = concat!(
        "[acme]\n",
        "directory = \"http://ca.example.com/directory\"\n",
        "contact = \"ops@example.com\"\n",
        "[[acme.certificate]]\n",
        "secret = \"../shop\"\n",
        "names = [\"*.example.com\", \"192.0.2.1\"]\n",
        "[[acme.certificate]]\n",
        "secret = \"empty\"\n",
        "names = []\n",
    );
    assert_eq!(
        parse(text).unwrap_err(),
        [
            "meshd.toml:2:13: acme.directory: \"http://ca.example.com/directory\" is not the URL of a directory, such as \"https://ca.example.com/directory\"",
            "meshd.toml:3:11: acme.contact: \"ops@example.com\" is no URL; write \"mailto:ops@example.com\"",
            "meshd.toml:5:10: acme.certificate[0].secret: \"../shop\" is no name of a secret: letters, digits, '-', '_' and '.' make one, and it begins with no '.'",
            "meshd.toml:6:10: acme.certificate[0].names: \"*.example.com\" is a wildcard, which an authority sees in DNS only (dns-01): name each host, or put a certificate of yours into the secret",
            "meshd.toml:6:27: acme.certificate[0].names: \"192.0.2.1\" is an address; certificates are ordered for names",
            "meshd.toml:9:1: acme.certificate[1].names: a certificate is for 1 to 100 names, not 0",
        ]
    );

    let orphan = "[[acme.certificate]]\nsecret = \"shop\"\nnames = \"shop.example.com\"\n";
    let twice = format!("[acme]\ndirectory = \"https://ca.example.com/\"\n{orphan}{orphan}");
    assert!(parse(orphan).unwrap_err()[0].contains("ordered from nobody"));
    assert!(parse(&twice).unwrap_err()[0].contains("secret \"shop\" is ordered twice"));
}
