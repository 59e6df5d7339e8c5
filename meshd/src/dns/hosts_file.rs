//! Names that this host knows by itself: `/etc/hosts`.
//!
//! Source: hosts(5).

use std::net::{IpAddr, Ipv4Addr};

/// Returns the addresses of a name (lower case, no trailing dot); none where the file does not have it.
pub(super) async fn addresses(name: &str) -> Vec<IpAddr> {
    // An absent file says nothing.
    let text = tokio::fs::read_to_string(HOSTS).await.unwrap_or_default();
    let found = parse(&text, name);
    if found.is_empty() && (name == "localhost" || name.ends_with(".localhost")) {
        return vec![Ipv4Addr::LOCALHOST.into()];
    }
    found
}

fn parse(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut found: Vec<IpAddr> = lines
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
        })
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.dedup();
    found
}

const HOSTS: &str = "/etc/hosts";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_with_the_name_counts_ipv4_first() {
        let text = "::1 localhost ip6-localhost\n127.0.0.1\tlocalhost # the host\n#10.0.0.1 db\n10.0.0.2 DB db.example\nx db\n";
        let found = |name: &str| parse(text, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(found("db"), ["10.0.0.2"]);
        assert!(found("host").is_empty());
    }
}
