//! How names are asked for on this host, and whether those of the mesh come to meshd.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use mesh_proto::look::{Check, Grade};

use super::Patient;
use crate::config::InterceptMode;

pub(super) fn check(patient: &Patient) -> Vec<Check> {
    let intercept = &patient.config.intercept;
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let nsswitch = std::fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    let servers = servers(&resolv);
    let mut checks = Vec::new();
    if servers.is_empty() {
        checks.push(Check::new(
            Grade::Error,
            "names",
            "/etc/resolv.conf names no resolver",
            "programs ask 127.0.0.1, and names outside the mesh are not found",
            "write a nameserver line into /etc/resolv.conf, or dns.upstreams into meshd.toml",
        ));
    }
    if intercept.dns && intercept.mode != InterceptMode::Off {
        checks.extend(past_port_53(&nsswitch, Path::new("/run/systemd/resolve/io.systemd.Resolve").exists()));
        if let (true, Some(name), Some(server)) = (patient.is_running, &patient.name_to_ask, servers.first())
        {
            checks.push(path(name, *server));
        }
    }
    if checks.is_empty() {
        // Whether meshd answers them can be asked only of one that runs.
        let listed: Vec<String> = servers.iter().map(ToString::to_string).collect();
        checks.push(Check::good("names", format!("programs ask {}", listed.join(", "))));
    }
    checks
}

/// Asks as a program would, and looks whether meshd has answered.
fn path(name: &str, server: IpAddr) -> Check {
    let asked = ask(SocketAddr::new(server, 53), name, Duration::from_secs(1));
    let to = format!("{name}, asked of {server} as programs do,");
    let why = "programs do not find services of the mesh by name";
    match asked {
        Ok(addresses) if addresses.iter().any(|address| is_virtual(*address)) => {
            Check::good("names", format!("{to} is {}: meshd answers", addresses[0]))
        }
        Ok(addresses) => {
            let said =
                addresses.first().map_or_else(|| "not found".to_owned(), |address| format!("{address}"));
            let fix = "meshctl doctor's firewall findings say who takes port 53; or point programs at 127.0.0.1:15053";
            Check::new(
                Grade::Warning,
                "names",
                format!("{to} is {said}: another resolver answered"),
                why,
                fix,
            )
        }
        Err(error) => Check::new(
            Grade::Warning,
            "names",
            format!("{to} got no answer: {error}"),
            why,
            "curl -s http://127.0.0.1:15000/services says what there is; journalctl -u meshd -p warning",
        ),
    }
}

fn is_virtual(address: Ipv4Addr) -> bool {
    address.octets()[..2] == [240, 240]
}

/// nss-resolve speaks to systemd-resolved past port 53, and its own questions are not caught where it is meshd's upstream.
fn past_port_53(nsswitch: &str, resolved_runs: bool) -> Option<Check> {
    let hosts = nsswitch.lines().find_map(|line| line.trim().strip_prefix("hosts:"))?;
    let mut words = hosts.split_ascii_whitespace();
    let first = words.find(|word| matches!(*word, "resolve" | "dns"))?;
    (first == "resolve" && resolved_runs).then(|| {
        Check::new(
            Grade::Warning,
            "names",
            "/etc/nsswitch.conf asks systemd-resolved before DNS (hosts: … resolve …)",
            "such questions never come to port 53: programs do not find services of the mesh by name",
            "take \"resolve [!UNAVAIL=return]\" out of the hosts line of /etc/nsswitch.conf; programs then ask 127.0.0.53, which meshd sees",
        )
    })
}

fn servers(resolv: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split(['#', ';']).next()?.split_ascii_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok())?
    };
    resolv.lines().filter_map(server).take(3).collect()
}

/// Asks a resolver for the IPv4 addresses of a name.
///
/// # Errors
/// When no answer comes in time, or none that can be read.
fn ask(server: SocketAddr, name: &str, limit: Duration) -> Result<Vec<Ipv4Addr>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut name = Name::from_ascii(name).map_err(|error| text(&error))?;
    name.set_fqdn(true);
    let id = fastrand::u16(..);
    let mut question = Message::new(id, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    let mut query = Query::query(name, RecordType::A);
    query.set_query_class(DNSClass::IN);
    question.add_query(query);
    let bytes = question.to_vec().map_err(|error| text(&error))?;
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).map_err(|error| text(&error))?;
    socket.set_read_timeout(Some(limit)).map_err(|error| text(&error))?;
    socket.connect(server).map_err(|error| text(&error))?;
    socket.send(&bytes).map_err(|error| text(&error))?;
    let mut answer = [0; 4_096];
    let length = socket.recv(&mut answer).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            format!("none within {} ms", limit.as_millis())
        }
        _ => text(&error),
    })?;
    let answer = Message::from_vec(&answer[..length]).map_err(|error| text(&error))?;
    let address = |record: &hickory_proto::rr::Record| match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    };
    Ok(answer.answers.iter().filter_map(address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nss_resolve_before_dns_is_told_where_resolved_runs() {
        let resolve = "hosts: files resolve [!UNAVAIL=return] dns\n";

        assert!(past_port_53(resolve, true).is_some());
        assert!(past_port_53(resolve, false).is_none());
        assert!(past_port_53("hosts: files dns resolve\n", true).is_none());
        assert!(past_port_53("passwd: files\n", true).is_none());
    }

    #[test]
    fn resolvers_are_read_as_the_library_reads_them() {
        let text = "# nameserver 9.9.9.9\nnameserver 127.0.0.53 # stub\nnameserver fe80::1%eth0\nnameserver 10.0.0.2\n";

        assert_eq!(
            servers(text),
            ["127.0.0.53", "10.0.0.2"].map(|ip| ip.parse::<IpAddr>().expect("an address"))
        );
    }
}
