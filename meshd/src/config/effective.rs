//! The configuration in force, key by key, for people who ask what a host runs.

use std::net::SocketAddr;

use mesh_proto::look::KeyValue;

use super::{Config, KEYS, StandsFor};

/// Returns every key with the value that `text` gives it, else its default; rows of `[[listener]]` as they stand.
///
/// `text` is one that [`Config::parse`] has understood. What the kernel or the command line says instead of a default
/// is told as it is in force.
pub fn effective(text: &str, config: &Config) -> Vec<KeyValue> {
    let root: toml::Table = text.parse().unwrap_or_default();
    let mut keys: Vec<KeyValue> = KEYS
        .iter()
        .filter(|key| !key.table.starts_with('['))
        .map(|key| {
            let given = find(&root, key.table).and_then(|table| table.get(key.name));
            let value = given.map_or_else(|| key.default.to_owned(), ToString::to_string);
            KeyValue { key: format!("{}.{}", key.table, key.name), value, given: given.is_some() }
        })
        .collect();
    let mut found = |key: &str, value: String| {
        if let Some(row) = keys.iter_mut().find(|row| row.key == key) {
            row.value = value;
        }
    };
    found("host.name", quoted(&config.host.name));
    found("host.data", quoted(&config.host.data.display().to_string()));
    found("listen.socket", quoted(&config.listen.socket.display().to_string()));
    let rows = root.get("listener").and_then(toml::Value::as_array).map_or(&[][..], Vec::as_slice);
    for (at, row) in rows.iter().enumerate() {
        for (name, value) in row.as_table().into_iter().flatten() {
            let key = format!("listener[{at}].{name}");
            keys.push(KeyValue { key, value: value.to_string(), given: true });
        }
    }
    keys
}

fn find<'t>(root: &'t toml::Table, path: &str) -> Option<&'t toml::Table> {
    path.split('.').try_fold(root, |table, name| table.get(name)?.as_table())
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Returns the addresses that keys name, with the key: who asks for a socket.
pub fn addresses(config: &Config) -> Vec<(String, SocketAddr)> {
    let listen = &config.listen;
    let mut all = vec![("listen.mesh".to_owned(), listen.mesh)];
    let mut add = |key: &str, addresses: &[SocketAddr]| {
        all.extend(addresses.iter().map(|address| (key.to_owned(), *address)));
    };
    add("listen.outbound", &listen.outbound);
    add("listen.inbound", &listen.inbound);
    add("listen.admin", listen.admin.as_slice());
    add("listen.metrics", &listen.metrics);
    add("listen.dns", &listen.dns);
    add("listen.http_proxy", listen.http_proxy.as_slice());
    for (at, listener) in config.listeners.iter().enumerate() {
        let stands_for = match &listener.stands_for {
            StandsFor::ServicePort(port) => format!("every service on port {port}"),
            StandsFor::Service { host, port } => format!("{host}:{port}"),
        };
        add(&format!("listener[{at}] ({stands_for})"), &[listener.address]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    #[test]
    fn what_the_file_gives_is_told_from_what_is_the_default() {
        let text = "[host]\nname = \"vm1\"\n[intercept]\nmode = \"off\"\n[[listener]]\naddress = \"127.0.0.1:9\"\nservice_port = 80\n";
        let config = Config::parse("meshd.toml", text, &Overrides::default()).expect("valid");

        let keys = effective(text, &config);

        let of =
            |key: &str| keys.iter().find(|row| row.key == key).map(|row| (row.value.as_str(), row.given));
        assert_eq!(of("host.name"), Some(("\"vm1\"", true)));
        assert_eq!(of("intercept.mode"), Some(("\"off\"", true)));
        assert_eq!(of("proxy.drain_seconds").map(|(_, given)| given), Some(false));
        assert_eq!(of("listener[0].service_port"), Some(("80", true)));
        assert_eq!(
            keys.iter().filter(|row| !row.key.starts_with("listener[")).count(),
            KEYS.iter().filter(|key| !key.table.starts_with('[')).count()
        );
    }
}
