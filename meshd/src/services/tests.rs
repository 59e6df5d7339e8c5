use std::collections::BTreeMap;

use mesh_proto::registration::{Health, HealthCheck, HttpAsk, PortBinding, Probe, Protocol};
use mesh_proto::value::Labels;

use super::*;
use crate::config::Config;
use crate::drain;

struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        Self { folder }
    }

    fn folders(&self) -> Folders {
        Folders::new(&self.folder.path().join("etc"), self.data())
    }

    fn desk(&self) -> (drain::Drain, Arc<Desk>) {
        let mut config = Config::default();
        config.services.directory = self.folder.path().join("etc");
        config.host.data = self.data().to_owned();
        let (drain, draining) = drain::channel();
        (drain, Desk::start(&config, draining))
    }

    fn data(&self) -> &Path {
        self.folder.path()
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join("etc").join(name), text).unwrap();
    }

    fn delete(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join("etc").join(name)).unwrap();
    }

    /// Findings with file names that do not depend on the temporary folder.
    fn said(&self, offer: &Offer) -> Vec<String> {
        let prefix = format!("{}/", self.folder.path().join("etc").display());
        offer.findings.iter().map(|finding| finding.to_string().replace(&prefix, "")).collect()
    }
}

fn ids(offer: &Offer) -> Vec<&str> {
    offer.registration.instances.keys().map(String::as_str).collect()
}

fn service(name: &str, port: u16) -> String {
    format!("[[service]]\nname = \"{name}\"\n[[service.port]]\nnumber = {port}\n")
}

fn reviews() -> Instance {
    Instance {
        service: "reviews".into(),
        group: None,
        namespace: "default".into(),
        account: "default".into(),
        labels: Labels::new(),
        ports: vec![PortBinding {
            number: 9080,
            name: String::new(),
            protocol: Protocol::Auto,
            target: "127.0.0.1:9080".parse().unwrap(),
        }],
        address: None,
        weight: 1,
        locality: None,
        check: None,
        health: Health::Healthy,
    }
}

#[test]
fn a_short_file_is_enough() {
    let host = Host::new();
    host.put("reviews.toml", &service("reviews", 9080));
    let offer = host.folders().read();
    assert_eq!(offer.findings, []);
    assert_eq!(*offer.registration.instances["reviews"], reviews());
}

#[test]
fn every_key_is_read() {
    let host = Host::new();
    host.put(
        "a.toml",
        concat!(
            "[[service]]\nname = \"reviews\"\nnamespace = \"shop\"\naccount = \"bookinfo-reviews\"\n",
            "labels = { version = \"v2\" }\nweight = 3\nlocality = \"eu/a\"\n",
            "[[service.port]]\nnumber = 9080\nname = \"http-api\"\nprotocol = \"http\"\ntarget = 19080\n",
            "[[service.port]]\nnumber = 9081\ntarget = \"[::1]:19081\"\n",
            "[service.check]\nhttp = \"/health\"\nport = 19090\ninterval = \"500ms\"\ntimeout = \"1s\"\n",
            "unhealthy_threshold = 3\nhealthy_threshold = 2\n",
        ),
    );
    let offer = host.folders().read();
    assert_eq!(host.said(&offer), [""; 0]);
    let instance = &offer.registration.instances["reviews-v2.shop"];
    assert_eq!((instance.account.as_str(), instance.weight), ("bookinfo-reviews", 3));
    assert_eq!(instance.locality.as_deref(), Some("eu/a"));
    assert_eq!(instance.ports[0].protocol, Protocol::Http);
    assert_eq!(instance.ports[0].target, "127.0.0.1:19080".parse().unwrap());
    assert_eq!(instance.ports[1].target, "[::1]:19081".parse().unwrap());
    assert_eq!(instance.health, Health::Unhealthy, "until its check has spoken");
    let probe = Probe::Http { path: "/health".into(), port: Some(19090), ask: HttpAsk::default() };
    let check = HealthCheck {
        initial_delay_ms: 0,
        probe,
        interval_ms: 500,
        timeout_ms: 1_000,
        unhealthy_threshold: 3,
        healthy_threshold: 2,
    };
    assert_eq!(instance.check, Some(check));
}

#[test]
fn everything_wrong_is_reported_where_it_stands() {
    let host = Host::new();
    host.put(
        "bad.toml",
        concat!(
            "[[service]]\nnaem = \"reviews\"\n",
            "[[service.port]]\nnumber = 0\n",
            "[[service.port]]\nnumber = 9080\ntarget = \"203.0.113.9:1\"\n",
            "[service.check]\nhttp = \"/\"\ntcp = true\ninterval = \"5\"\n",
        ),
    );
    let offer = host.folders().read();
    let said = host.said(&offer);
    let begins = [
        "bad.toml:1:1: service[0].name: is required",
        "bad.toml:2:1: service[0].naem: unknown key; did you mean \"name\"?",
        "bad.toml:4:10: service[0].port[0].number: must lie between 1 and 65535, is 0",
        "bad.toml:7:1: service[0].port[1].target: 203.0.113.9:1 is not an address of this host",
        "bad.toml:8:10: service[0].check: needs exactly one of http, tcp, grpc and command; has http and tcp",
        "bad.toml:11:12: service[0].check.interval: duration \"5\" has no unit",
    ];
    assert_eq!(said.len(), begins.len(), "{said:#?}");
    for (said, begin) in said.iter().zip(begins) {
        assert!(said.starts_with(begin), "{said}\n{begin}");
    }
}

#[test]
fn a_bad_file_keeps_its_last_good_content_and_a_deleted_one_does_not() {
    let host = Host::new();
    let mut folders = host.folders();
    host.put("reviews.toml", &service("reviews", 9080));
    host.put("ratings.toml", &service("ratings", 9081));
    folders.read();
    host.put("reviews.toml", "[[service]]\nname = 3\n");
    let offer = folders.read();
    assert_eq!(ids(&offer), ["ratings", "reviews"]);
    assert!(!offer.findings.is_empty());
    host.delete("reviews.toml");
    let offer = folders.read();
    assert_eq!((ids(&offer), offer.findings.len()), (vec!["ratings"], 0));
}

#[test]
fn a_port_belongs_to_whoever_had_it_first() {
    let host = Host::new();
    let mut folders = host.folders();
    host.put("z.toml", &service("reviews", 9080));
    folders.read();
    host.put("a.toml", &format!("{}{}", service("ratings", 9080), service("details", 9082)));
    let offer = folders.read();
    assert_eq!(ids(&offer), ["details", "reviews"]);
    let said = host.said(&offer);
    assert_eq!(said.len(), 1);
    assert_eq!(
        said[0].replace(&format!("{}/etc/", host.data().display()), ""),
        "a.toml:3:1: service[0].port[0].target: port 9080 is the target of \"reviews\" (z.toml:1:1)"
    );
}

#[test]
fn two_instances_of_one_service_need_something_to_tell_them_apart() {
    let host = Host::new();
    host.put("a.toml", &format!("{}{}", service("reviews", 9080), service("reviews", 9081)));
    let offer = host.folders().read();
    assert_eq!(ids(&offer), ["reviews"]);
    assert!(host.said(&offer)[0].contains("id \"reviews\" is taken by a.toml"), "{:?}", host.said(&offer));
    assert!(offer.findings[0].hint.as_deref().unwrap().contains("another id"));
}

#[test]
fn an_address_off_this_host_is_an_endpoint_outside_the_mesh() {
    let host = Host::new();
    let text = service("db", 5432).replace("name =", "address = \"203.0.113.9\"\nname =");
    host.put("db.toml", &text);
    // The same port on this host is another one.
    host.put("local.toml", &service("db-proxy", 5432));
    let offer = host.folders().read();
    assert_eq!(host.said(&offer), [""; 0]);
    let db = &offer.registration.instances["db"];
    assert_eq!(db.address, Some("203.0.113.9".parse().unwrap()));
    assert_eq!(db.ports[0].target, "203.0.113.9:5432".parse().unwrap());
}

#[tokio::test]
async fn what_meshctl_registers_survives_a_restart_until_it_is_deregistered() {
    let host = Host::new();
    let (_drain, desk) = host.desk();
    let probes = [
        Probe::Http { path: "/h?x=1".into(), port: Some(1), ask: HttpAsk::default() },
        Probe::Tcp { host: None, port: None },
        Probe::Grpc { service: String::new(), port: None },
        Probe::Command { argv: vec!["/bin/true".into(), "a b".into()] },
    ];
    for probe in probes {
        let check = HealthCheck {
            initial_delay_ms: 0,
            probe,
            interval_ms: 250,
            timeout_ms: 100,
            unhealthy_threshold: 2,
            healthy_threshold: 1,
        };
        let labels = Labels::from([("version".into(), "v1".into()), ("a/b.c".into(), "x".into())]);
        let health = Health::Unhealthy;
        let instance =
            Instance { check: Some(check), labels, locality: Some("eu/a/1".into()), health, ..reviews() };
        within(desk.register(&[("mine".into(), instance.clone())].into())).await;
        let offer = host.folders().read();
        assert_eq!(host.said(&offer), [""; 0]);
        assert_eq!(*offer.registration.instances["mine"], instance);
    }
    within(desk.deregister(&["mine".into()])).await;
    assert!(desk.registration().borrow().instances.is_empty());
    let error = desk.deregister(&["mine".into()]).await.unwrap_err();
    assert_eq!(error.message, "no instance \"mine\" is registered on this host");
    assert_eq!(ids(&host.folders().read()), [""; 0]);
}

#[tokio::test]
async fn an_order_that_contradicts_a_file_is_refused_and_changes_nothing() {
    let host = Host::new();
    host.put("reviews.toml", &service("reviews", 9080));
    let (_drain, desk) = host.desk();
    let refused = async |id: &str, also: Option<&str>| {
        let mut order = BTreeMap::from([(id.to_owned(), reviews())]);
        order.extend(also.map(|also| (also.to_owned(), other_port())));
        let error = desk.register(&order).await.unwrap_err();
        assert_eq!(error.message, "nothing was registered: the order has findings");
        error.findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let said = refused("other", Some("fine")).await;
    assert!(
        said.contains("port 9080 is the target of \"reviews\"") && said.contains("reviews.toml"),
        "{said}"
    );
    let said = refused("reviews", None).await;
    assert!(said.contains("id \"reviews\" is taken by"), "{said}");
    let said = refused("../../etc/passwd", None).await;
    assert!(said.contains("may hold"), "{said}");
    let said = desk.deregister(&["reviews".into()]).await.unwrap_err().message;
    assert!(said.contains("reviews.toml: remove it there"), "{said}");
    assert!(!host.data().join("services.d").exists());
}

#[tokio::test]
async fn files_are_picked_up_and_withdrawn_live() {
    let host = Host::new();
    let (drain, desk) = host.desk();
    let mut offered = desk.offers();
    host.put("reviews.toml", &service("reviews", 9080));
    within(offered.wait_for(|offer| ids(offer) == ["reviews"])).await;
    // The folder of meshctl does not exist before its first use.
    within(desk.register(&[("ratings".into(), other_port())].into())).await;
    assert_eq!(desk.registration().borrow().instances.len(), 2);
    host.delete("reviews.toml");
    within(offered.wait_for(|offer| ids(offer) == ["ratings"])).await;
    drain.start();
    assert_eq!(drain.finished(Duration::from_secs(20)).await, 0);
}

fn other_port() -> Instance {
    let mut instance = Instance { service: "ratings".into(), ..reviews() };
    instance.ports[0].target.set_port(9081);
    instance
}

async fn within<T, E: std::fmt::Debug>(what: impl Future<Output = Result<T, E>>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("in time").expect("done")
}

#[test]
fn a_member_of_a_group_needs_neither_name_nor_port() {
    let host = Host::new();
    host.put("member.toml", "[[service]]\ngroup = \"shop/reviews-vms\"\nlabels = { version = \"v2\" }\n");
    let offer = host.folders().read();
    assert_eq!(offer.findings, []);
    let member = &offer.registration.instances["reviews-vms-v2.shop"];
    assert_eq!((member.service.as_str(), member.namespace.as_str()), ("reviews-vms", "shop"));
    assert_eq!((member.group.as_deref(), member.ports.len()), (Some("reviews-vms"), 0));

    host.put("member.toml", "[[service]]\ngroup = \"shop/a\"\nnamespace = \"other\"\n");
    let said = host.said(&host.folders().read());
    assert!(said[0].contains("member.toml:3:") && said[0].contains("namespace shop"), "{said:?}");
}

#[test]
fn what_join_writes_is_read_back() {
    let host = Host::new();
    member("shop/reviews-vms").unwrap().keep(host.data()).unwrap();
    let offer = host.folders().read();
    assert_eq!((offer.findings.len(), ids(&offer)), (0, vec!["reviews-vms.shop"]));
    assert_eq!(offer.registration.instances["reviews-vms.shop"].group.as_deref(), Some("reviews-vms"));
    assert!(member("shop/Reviews VMs").is_err());
}

#[test]
fn every_released_folder_of_services_means_what_it_meant() {
    let released = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
    let mut versions = 0;
    for version in std::fs::read_dir(released).unwrap().flatten() {
        let folder = version.path().join("services.d");
        if !folder.is_dir() {
            continue;
        }
        let data = tempfile::tempdir().unwrap();
        let offer = Folders::new(&folder, data.path()).read();
        assert_eq!(offer.findings, [], "{folder:?}");
        let meant = std::fs::read_to_string(version.path().join("services.json")).unwrap();
        let meant: serde_json::Value = serde_json::from_str(&meant).unwrap();
        let read = serde_json::to_value(&offer.registration.instances).unwrap();
        assert_eq!(read, meant, "{folder:?}: {read:#}");
        versions += 1;
    }
    assert!(versions > 0);
}
