//! Real rules in real network namespaces: each test runs itself again inside one of its own, without root.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin};
use std::time::Duration;

use mesh_proto::registration::{Health, Instance, PortBinding, Protocol};
use mesh_proto::value::Labels;
use socket2::{Domain, SockRef, Socket, Type};

use super::*;

const INSIDE: &str = "MESHD_TEST_NAMESPACE";

/// Runs `body` in fresh user, mount and network namespaces (or in those of `flags`). `test` is the caller's name.
fn in_namespaces(flags: &str, test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    if let Some(why) = obstacle() {
        eprintln!("SKIPPED: {test}: {why}");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "SKIPPED: {test}: {why}");
        return;
    }
    let status = Command::new("unshare")
        .arg(flags)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("intercept::tests::{test}"), "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status();
    assert!(status.unwrap().success(), "failed inside the namespace");
}

fn obstacle() -> Option<String> {
    let tried = Command::new("unshare").args(["-Urnm", "true"]).output();
    match tried {
        Ok(output) if !output.status.success() => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(format!("unshare: {error}")),
        Ok(_) => ["nft", "ip", "nsenter", "bash"]
            .into_iter()
            .find(|program| spawn(program, &["--version"], "").is_err())
            .map(|program| format!("{program} is not installed")),
    }
}

/// Another host on a cable. It listens on nothing: whatever reaches it is refused at once.
struct Neighbour {
    child: Child,
    _stdin: ChildStdin,
}

impl Neighbour {
    /// This host is `198.18.0.1` and `fd00::1`, the other `198.18.0.2` and `fd00::2`.
    fn connect() -> Self {
        let mut child = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
        let stdin = child.stdin.take().unwrap();
        let here = Self { child, _stdin: stdin };
        ok("ip link set lo up");
        ok(&format!("ip link add here type veth peer name there netns {}", here.child.id()));
        for command in [
            "ip addr add 198.18.0.1/24 dev here",
            "ip addr add fd00::1/64 dev here nodad",
            "ip link set here up",
        ] {
            ok(command);
        }
        for command in [
            "ip addr add 198.18.0.2/24 dev there",
            "ip addr add fd00::2/64 dev there nodad",
            "ip link set lo up",
            "ip link set there up",
        ] {
            assert!(here.command(command).status().unwrap().success(), "{command}");
        }
        ok("ip route add default via 198.18.0.2");
        here
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.child.id().to_string(), "-n", "bash", "-c", line]);
        command.stderr(Stdio::null());
        command
    }

    /// Whether a connection from there to here opens.
    fn reaches(&self, host: &str, port: u16) -> bool {
        let line = format!("exec 3<>/dev/tcp/{host}/{port}");
        self.command(&line).status().unwrap().success()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ok(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn said(line: &str) -> String {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn intercept() -> Intercept {
    Intercept { exclude_ports: [22, 2525].into(), ..rules(&Config::default(), &[], &Registration::default()) }
}

fn meshd_listens(address: &str) -> TcpListener {
    TcpListener::bind(address).unwrap()
}

/// Connects, and says where meshd was told the connection was going; `None` when the neighbour refused it.
fn arrives(listener: &TcpListener, target: &str, mark: Option<u32>) -> Option<SocketAddr> {
    let target: SocketAddr = target.parse().unwrap();
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).unwrap();
    if let Some(mark) = mark {
        socket.set_mark(mark).unwrap();
    }
    if let Err(error) = socket.connect_timeout(&target.into(), Duration::from_secs(5)) {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{target}: {error}");
        return None;
    }
    let (stream, _) = listener.accept().unwrap();
    Some(original_destination(&stream, target.is_ipv4()))
}

fn original_destination(stream: &TcpStream, v4: bool) -> SocketAddr {
    let socket = SockRef::from(stream);
    let address = if v4 { socket.original_dst_v4() } else { socket.original_dst_v6() };
    address.unwrap().as_socket().unwrap()
}

#[test]
fn connections_arrive_with_their_original_destination() {
    in_namespaces("-Urnm", "connections_arrive_with_their_original_destination", || {
        let _neighbour = Neighbour::connect();
        apply(&intercept()).unwrap();
        let (v4, v6) = (meshd_listens("127.0.0.1:15001"), meshd_listens("[::1]:15001"));
        for target in ["198.18.0.2:9080", "203.0.113.9:443", "240.240.0.7:9080"] {
            assert_eq!(arrives(&v4, target, None), Some(target.parse().unwrap()));
        }
        for target in ["[fd00::2]:9080", "[2001:2::7]:9080"] {
            assert_eq!(arrives(&v6, target, None), Some(target.parse().unwrap()));
        }
    });
}

#[test]
fn what_is_exempt_goes_where_it_was_going() {
    in_namespaces("-Urnm", "what_is_exempt_goes_where_it_was_going", || {
        let _neighbour = Neighbour::connect();
        let rules = Intercept { exclude_cidrs: vec!["198.18.0.2/32".parse().unwrap()], ..intercept() };
        apply(&rules).unwrap();
        let (v4, v6) = (meshd_listens("127.0.0.1:15001"), meshd_listens("[::1]:15001"));
        assert_eq!(arrives(&v4, "198.18.0.2:9080", None), None, "excluded range");
        assert_eq!(arrives(&v6, "[fd00::2]:9080", Some(rules.mark)), None, "own mark");
        assert_eq!(arrives(&v6, "[fd00::2]:22", None), None, "SSH");
        assert_eq!(arrives(&v6, "[fd00::2]:2525", None), None, "excluded port");
        assert_eq!(arrives(&v6, "[fd00::2]:15008", None), None, "meshd's port on another host");
        assert_eq!(arrives(&v4, "127.0.0.1:9080", None), None, "loopback");
        assert_eq!(arrives(&v4, "198.18.0.1:9080", None), None, "an address of this host");
        assert!(arrives(&v6, "[fd00::2]:9080", None).is_some(), "everything else");
        apply(&Intercept { exclude_uids: [0].into(), ..rules }).unwrap();
        assert_eq!(arrives(&v6, "[fd00::2]:9080", None), None, "excluded user");
    });
}

#[test]
fn a_virtual_address_never_reaches_a_port_of_this_host() {
    in_namespaces("-Urnm", "a_virtual_address_never_reaches_a_port_of_this_host", || {
        let neighbour = Neighbour::connect();
        apply(&intercept()).unwrap();
        let sshd = meshd_listens("0.0.0.0:22");
        assert_eq!(arrives(&sshd, "240.240.0.7:22", None), None);
        assert!(neighbour.reaches("198.18.0.1", 22));
        let there = "ip route add 240.240.0.0/16 via 198.18.0.1; timeout 0.3 bash -c 'exec 3<>/dev/tcp/240.240.0.7/22'";
        assert!(!neighbour.command(there).status().unwrap().success(), "dropped on its way in");
    });
}

#[test]
fn only_registered_ports_are_caught_on_their_way_in() {
    in_namespaces("-Urnm", "only_registered_ports_are_caught_on_their_way_in", || {
        let neighbour = Neighbour::connect();
        apply(&Intercept { inbound_targets: [9080].into(), ..intercept() }).unwrap();
        let (v4, v6) = (meshd_listens("0.0.0.0:15006"), meshd_listens_on_v6_only("[::]:15006"));
        assert!(neighbour.reaches("198.18.0.1", 9080));
        let there = original_destination(&v4.accept().unwrap().0, true);
        assert_eq!(there, "198.18.0.1:9080".parse().unwrap());
        assert!(neighbour.reaches("fd00::1", 9080));
        let there = original_destination(&v6.accept().unwrap().0, false);
        assert_eq!(there, "[fd00::1]:9080".parse().unwrap());
        assert!(!neighbour.reaches("198.18.0.1", 9090));
        update_inbound(&[9090, 22].into()).unwrap();
        assert!(neighbour.reaches("198.18.0.1", 9090));
        assert!(!neighbour.reaches("198.18.0.1", 9080));
        assert!(!neighbour.reaches("198.18.0.1", 22), "SSH is exempt even when registered");
    });
}

fn meshd_listens_on_v6_only(address: &str) -> TcpListener {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_only_v6(true).unwrap();
    socket.bind(&address.parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(8).unwrap();
    socket.into()
}

#[test]
fn questions_of_local_processes_reach_meshd_and_answers_come_back() {
    in_namespaces("-Urnm", "questions_of_local_processes_reach_meshd_and_answers_come_back", || {
        let _neighbour = Neighbour::connect();
        let rules = intercept();
        apply(&rules).unwrap();
        for (here, resolver) in [
            ("127.0.0.1:15053", "198.18.0.2:53"),
            ("[::1]:15053", "[fd00::2]:53"),
            ("127.0.0.1:15053", "127.0.0.53:53"),
        ] {
            let meshd = UdpSocket::bind(here).unwrap();
            let any = if here.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let asker = UdpSocket::bind(any).unwrap();
            asker.connect(resolver).unwrap();
            asker.send(b"who?").unwrap();
            let mut buffer = [0; 16];
            let (length, from) = meshd.recv_from(&mut buffer).unwrap();
            meshd.send_to(&buffer[..length], from).unwrap();
            assert_eq!(asker.recv(&mut buffer).unwrap(), 4, "{resolver}");
        }
        let tcp = meshd_listens("127.0.0.1:15053");
        assert!(arrives(&tcp, "198.18.0.2:53", None).is_some());
        assert_eq!(arrives(&tcp, "198.18.0.2:53", Some(rules.mark)), None, "meshd's own questions");
    });
}

#[test]
fn connections_that_were_open_before_go_on() {
    in_namespaces("-Urnm", "connections_that_were_open_before_go_on", || {
        let neighbour = Neighbour::connect();
        let service = meshd_listens("198.18.0.1:7000");
        let echo = "exec 3<>/dev/tcp/198.18.0.1/7000; read line <&3; echo \"$line back\" >&3; cat <&3";
        let mut echo = neighbour.command(echo).spawn().unwrap();
        let (mut stream, _) = service.accept().unwrap();
        apply(&Intercept { inbound_targets: [7000].into(), ..intercept() }).unwrap();
        stream.write_all(b"hello\n").unwrap();
        let mut reply = [0; 11];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"hello back\n");
        drop(stream);
        echo.wait().unwrap();
    });
}

#[test]
fn removal_leaves_the_host_as_it_was_found() {
    in_namespaces("-Urnm", "removal_leaves_the_host_as_it_was_found", || {
        let _neighbour = Neighbour::connect();
        ok("nft add table inet somebody_else");
        ok("nft add chain inet somebody_else c { type nat hook output priority -100 ; }");
        ok("ip route add local 240.241.0.0/16 dev lo proto static");
        let state = || {
            [
                "nft list ruleset",
                "ip route show table all",
                "ip -6 route show table all",
                "ip rule",
                "ip address",
            ]
            .map(said)
        };
        let before = state();
        apply(&intercept()).unwrap();
        assert!(is_present().unwrap());
        assert!(show().unwrap().unwrap().contains("redirect to :15001"));
        // What a crashed process left is replaced by the next one, and taken out by a third.
        apply(&intercept()).unwrap();
        assert_ne!(state(), before);
        remove().unwrap();
        assert!(!is_present().unwrap());
        assert_eq!(state(), before);
        remove().unwrap();
        start(InterceptMode::Off, &intercept(), &BTreeSet::new()).unwrap();
        assert_eq!(state(), before);
    });
}

#[test]
fn off_takes_out_what_a_predecessor_left_and_nothing_of_another_meshd() {
    in_namespaces("-Urnm", "off_takes_out_what_a_predecessor_left_and_nothing_of_another_meshd", || {
        ok("ip link set lo up");
        let off = |own: &[u16]| {
            start(InterceptMode::Off, &intercept(), &own.iter().copied().collect()).unwrap();
            is_present().unwrap()
        };
        let on = || {
            let outcome = start(InterceptMode::On, &intercept(), &BTreeSet::new());
            assert!(matches!(outcome, Ok(Outcome::Applied)));
        };
        let routes = || said("ip route show table all");
        let before = routes();
        let other = TcpListener::bind("127.0.0.1:15001").unwrap();
        on();
        assert!(off(&[15_999]), "it leads to the socket of another meshd");
        assert!(!off(&[15_001]), "it leads to a socket of this one");
        on();
        drop(other);
        assert!(!off(&[]), "it leads to nobody");
        assert_eq!(routes(), before);
    });
}

#[test]
fn a_ruleset_that_the_kernel_refuses_leaves_nothing_behind() {
    in_namespaces("-Urnm", "a_ruleset_that_the_kernel_refuses_leaves_nothing_behind", || {
        ok("ip link set lo up");
        let before = ["nft list ruleset", "ip route show table all"].map(said);
        let broken = Intercept { exclude_cidrs: vec!["10.0.0.0/8".parse().unwrap()], ..intercept() };
        let text = firewall::ruleset(&broken).replace("10.0.0.0/8", "10.0.0.0/99");
        assert!(matches!(nft(&text), Err(InterceptError::Refused { .. })));
        assert_eq!(["nft list ruleset", "ip route show table all"].map(said), before);
    });
}

#[test]
fn without_the_privilege_auto_goes_on_and_on_says_what_to_do() {
    // Root in a user namespace of its own, but in the network namespace of others.
    in_namespaces("-Ur", "without_the_privilege_auto_goes_on_and_on_says_what_to_do", || {
        let outcome = start(InterceptMode::Auto, &intercept(), &BTreeSet::new()).unwrap();
        assert!(
            matches!(&outcome, Outcome::Unavailable(why) if why.contains("needs CAP_NET_ADMIN")),
            "{outcome:?}"
        );
        let error = start(InterceptMode::On, &intercept(), &BTreeSet::new()).unwrap_err().to_string();
        assert!(error.contains("needs CAP_NET_ADMIN") && error.contains("intercept.mode"), "{error}");
    });
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    let error = run("nft-which-is-not-there", &[], "").unwrap_err().to_string();
    assert!(error.contains("is not installed; install the package"), "{error}");
}

#[test]
fn a_kernel_without_nat_is_told_apart_from_a_missing_privilege() {
    let said = |text: &str| refusal("nft", &["-f", "-"], text.into());
    assert!(matches!(
        said("Error: Could not process rule: Operation not supported"),
        InterceptError::Kernel { .. }
    ));
    assert!(matches!(
        said("Error: Could not process rule: No such file or directory"),
        InterceptError::Kernel { .. }
    ));
    assert!(matches!(
        said("Operation not permitted (you must be root)"),
        InterceptError::NotPermitted { .. }
    ));
}

#[test]
fn the_ssh_session_is_read_from_its_variable() {
    let session = ssh_session("192.0.2.7 50122 198.18.0.1 2222");
    assert_eq!(session, Some(SshSession { peer: "192.0.2.7".parse().unwrap(), port: 2222 }));
    assert_eq!(ssh_session("nonsense"), None);
}

#[test]
fn what_listens_on_loopback_only_is_not_opened_to_others() {
    let port = |target: &str| PortBinding {
        number: 80,
        name: String::new(),
        protocol: Protocol::Http,
        target: target.parse().unwrap(),
    };
    let instance = |ports, address| Instance {
        service: "web".into(),
        group: None,
        namespace: "default".into(),
        account: "default".into(),
        labels: Labels::new(),
        ports,
        address,
        weight: 1,
        locality: None,
        check: None,
        health: Health::Healthy,
    };
    let here = instance(vec![port("127.0.0.1:9080"), port("198.18.0.1:9081")], None);
    let elsewhere = instance(vec![port("198.18.0.9:9082")], Some("198.18.0.9".parse().unwrap()));
    let instances = [("a".into(), here.into()), ("b".into(), elsewhere.into())].into();
    assert_eq!(inbound_targets(&Registration { instances }), BTreeSet::from([9081]));
}

#[test]
fn a_resolver_on_this_host_is_the_only_one_caught() {
    let stub = ["127.0.0.53:53".parse().unwrap()];
    assert_eq!(questions_to_catch(&stub), ["127.0.0.53".parse::<IpAddr>().unwrap()]);
    assert!(questions_to_catch(&["192.0.2.1:53".parse().unwrap()]).is_empty());
}
