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
    /// `--host`: a host of the mesh.
    pub(crate) host: Option<String>,
}

impl Wish {
    /// Takes the flags; without them, `MESHD_SOCKET` of the environment.
    pub(crate) fn new(socket: Option<PathBuf>, host: Option<String>) -> Self {
        let environment =
            std::env::var_os("MESHD_SOCKET").filter(|value| socket.is_none() && !value.is_empty());
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
    /// The host to ask by way of this one.
    pub(crate) on: Option<String>,
}

/// Finds the socket to use.
///
/// # Errors
///
/// `--host` naming a host that the running demo does not have.
pub(crate) fn find(wish: &Wish) -> Result<Place> {
    find_among(wish, Path::new(HOST_SOCKET), folder::current())
}

fn find_among(wish: &Wish, own: &Path, demo: Option<PathBuf>) -> Result<Place> {
    let by_way_of = |socket: PathBuf| Place { socket, demo: false, on: wish.host.clone() };
    if let Some(socket) = &wish.socket {
        return Ok(by_way_of(socket.clone()));
    }
    match (demo, &wish.host) {
        // Its sockets are all on this machine: also that of a host which does not answer others.
        (Some(folder), Some(host)) if !own.exists() => demo_host(host, &folder),
        (Some(folder), None) if !own.exists() => {
            Ok(Place { socket: folder.join("vm1.sock"), demo: true, on: None })
        }
        _ => Ok(by_way_of(own.to_owned())),
    }
}

fn demo_host(host: &str, demo: &Path) -> Result<Place> {
    let names = folder::HOSTS;
    if !names.contains(&host) {
        return Err(Failure::usage(format!("the demo has no host {host:?} (it has {})", names.join(", "))));
    }
    Ok(Place { socket: demo.join(format!("{host}.sock")), demo: false, on: None })
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

        assert_eq!(place, Place { socket: "/a.sock".into(), demo: false, on: None });
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

        assert_eq!(place, Place { socket: "/demo/vm1.sock".into(), demo: true, on: None });
    }

    #[test]
    fn host_selects_a_host_of_the_demo_where_there_is_no_other_mesh() {
        let of =
            |host: &str, own: &str| find_among(&wish(None, Some(host)), Path::new(own), Some("/demo".into()));

        assert_eq!(of("vm2", "/nowhere").expect("found").socket, Path::new("/demo/vm2.sock"));
        assert!(of("vm9", "/nowhere").is_err());
        let by_way_of = of("vm2", "/").expect("found");
        assert_eq!((by_way_of.socket.as_path(), by_way_of.on.as_deref()), (Path::new("/"), Some("vm2")));
    }

    #[test]
    fn host_beside_a_socket_is_asked_by_way_of_it() {
        let place = find_among(&wish(Some("/a.sock"), Some("web9")), Path::new("/"), None).expect("found");

        assert_eq!((place.socket.as_path(), place.on.as_deref()), (Path::new("/a.sock"), Some("web9")));
    }
}
