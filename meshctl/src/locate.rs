//! Which meshd to speak to: a socket by flag, by environment, the host's own, or the running demo's.

use std::path::{Path, PathBuf};

use crate::demo::folder;
use crate::exit::{Failure, Result};

/// The socket of the host's own meshd.
pub(crate) const HOST_SOCKET: &str = "/run/meshd/meshd.sock";

/// What the user said about where to connect.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    /// `--socket` or `MESHD_SOCKET`.
    pub(crate) socket: Option<PathBuf>,
    /// `--host`: a host of the running demo.
    pub(crate) host: Option<String>,
}

impl Wish {
    /// Takes the flags; without them, `MESHD_SOCKET` of the environment.
    pub(crate) fn new(socket: Option<PathBuf>, host: Option<String>) -> Self {
        let named = socket.is_some() || host.is_some();
        let environment = std::env::var_os("MESHD_SOCKET").filter(|value| !named && !value.is_empty());
        Self { socket: socket.or(environment.map(PathBuf::from)), host }
    }
}

/// A socket, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The path.
    pub(crate) socket: PathBuf,
    /// Whether it is the running demo's, and nobody said so.
    pub(crate) demo: bool,
}

/// Finds the socket to use.
///
/// # Errors
///
/// `--host` without a running demo, or naming a host that the demo does not have.
pub(crate) fn find(wish: &Wish) -> Result<Place> {
    find_among(wish, Path::new(HOST_SOCKET), folder::current())
}

fn find_among(wish: &Wish, own: &Path, demo: Option<PathBuf>) -> Result<Place> {
    if let Some(host) = &wish.host {
        return demo_host(host, demo.as_deref());
    }
    if let Some(socket) = &wish.socket {
        return Ok(Place { socket: socket.clone(), demo: false });
    }
    match demo {
        Some(folder) if !own.exists() => Ok(Place { socket: folder.join("vm1.sock"), demo: true }),
        _ => Ok(Place { socket: own.to_owned(), demo: false }),
    }
}

fn demo_host(host: &str, demo: Option<&Path>) -> Result<Place> {
    let Some(folder) = demo else {
        return Err(Failure::usage(
            "--host names a host of the running demo, and none runs here: start it with `meshctl demo`, \
             or give the socket of a meshd with --socket",
        ));
    };
    let names = folder::HOSTS;
    if !names.contains(&host) {
        return Err(Failure::usage(format!("the demo has no host {host:?} (it has {})", names.join(", "))));
    }
    Ok(Place { socket: folder.join(format!("{host}.sock")), demo: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(socket: Option<&str>, host: Option<&str>) -> Wish {
        Wish { socket: socket.map(PathBuf::from), host: host.map(str::to_owned) }
    }

    #[test]
    fn a_named_socket_wins_over_all_else() {
        let place =
            find_among(&wish(Some("/a.sock"), None), Path::new("/"), Some("/demo".into())).expect("found");

        assert_eq!(place, Place { socket: "/a.sock".into(), demo: false });
    }

    #[test]
    fn the_hosts_own_meshd_wins_over_the_demo() {
        let place = find_among(&wish(None, None), Path::new("/"), Some("/demo".into())).expect("found");

        assert_eq!(place.socket, Path::new("/"));
    }

    #[test]
    fn without_a_meshd_the_running_demo_answers() {
        let place =
            find_among(&wish(None, None), Path::new("/nowhere"), Some("/demo".into())).expect("found");

        assert_eq!(place, Place { socket: "/demo/vm1.sock".into(), demo: true });
    }

    #[test]
    fn host_selects_a_host_of_the_demo() {
        let place =
            find_among(&wish(None, Some("vm2")), Path::new("/"), Some("/demo".into())).expect("found");

        assert_eq!(place.socket, Path::new("/demo/vm2.sock"));
        assert!(find_among(&wish(None, Some("vm9")), Path::new("/"), Some("/demo".into())).is_err());
        assert!(find_among(&wish(None, Some("vm2")), Path::new("/"), None).is_err());
    }
}
