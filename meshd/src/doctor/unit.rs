//! The unit that would run a meshd that does not run: what systemd says of it, and as whom and with which rights it
//! would run. What is judged of such a meshd is judged for that user, and not for whoever types.

use mesh_proto::look::{Check, Grade};
use rustix::thread::CapabilitySet;

use super::output_of;

/// A unit that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    state: String,
    /// Whether somebody forbade it.
    is_masked: bool,
    result: String,
    /// How its last process ended.
    status: String,
    restarts: String,
    invocation: String,
    /// The user it runs as; empty: root.
    user: String,
    /// What it may do.
    pub(super) rights: CapabilitySet,
    /// How many descriptors it may have.
    pub(super) descriptors: Option<u64>,
    /// How many sockets systemd keeps for it.
    pub(super) kept: u32,
}

impl Unit {
    /// Asks systemd; `None`: there is none, or no systemd.
    pub(super) fn find() -> Option<Self> {
        Self::read(&output_of("systemctl", &["show", "meshd", "-p", PROPERTIES]).ok()?)
    }

    fn read(shown: &str) -> Option<Self> {
        let value = |name: &str| {
            shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
        };
        let load = value("LoadState");
        if !["loaded", "masked"].contains(&load) {
            return None;
        }
        let bound = capabilities(value("CapabilityBoundingSet"));
        let user = Some(value("User")).filter(|user| !user.is_empty() && *user != "root");
        let rights = user.map_or(bound, |_| bound & capabilities(value("AmbientCapabilities")));
        Some(Self {
            state: value("ActiveState").into(),
            is_masked: load == "masked",
            result: value("Result").into(),
            status: value("ExecMainStatus").into(),
            restarts: value("NRestarts").into(),
            invocation: value("InvocationID").into(),
            user: user.unwrap_or_default().into(),
            rights,
            descriptors: value("LimitNOFILE").parse().ok(),
            kept: value("NFileDescriptorStore").parse().unwrap_or(0),
        })
    }

    /// The user it runs as.
    pub(super) fn user(&self) -> &str {
        if self.user.is_empty() { "root" } else { &self.user }
    }

    /// Why its last start failed, in its own words.
    fn last_words(&self) -> Option<String> {
        let of = format!("_SYSTEMD_INVOCATION_ID={}", self.invocation);
        let said = output_of("journalctl", &["-q", "--no-pager", "-o", "cat", "-p", "err", "-n", "20", &of]);
        let said = said.ok()?;
        let words = said.lines().rev().find_map(|line| line.strip_prefix("meshd: "))?;
        Some(words.chars().take(MOST_WORDS).collect())
    }
}

/// Says that meshd does not run, and what its unit made of it.
pub(super) fn standing(unit: Option<&Unit>) -> Check {
    judge(unit, Unit::last_words)
}

fn judge(unit: Option<&Unit>, last_words: impl Fn(&Unit) -> Option<String>) -> Check {
    let why = "traffic goes where it would go without meshd; the mesh avoids this host's instances";
    let error = |what: String, fix: &str| Check::new(Grade::Error, "meshd", what, why, fix);
    let Some(unit) = unit else {
        let fix = "meshd run, with the same --config and --data (no unit of systemd runs this one)";
        return error("meshd does not run".into(), fix);
    };
    let said = || last_words(unit).map_or_else(String::new, |words| format!(": {words}"));
    match (unit.state.as_str(), unit.status.as_str()) {
        _ if unit.is_masked => error(
            "meshd does not run: its unit is masked".into(),
            "systemctl unmask meshd, then: systemctl enable --now meshd",
        ),
        ("failed", status @ ("78" | "64")) => error(
            format!("meshd does not run: it ended with {status}, which a person must put right{}", said()),
            "put right what it says (journalctl -u meshd -p err -n 20), then: systemctl start meshd",
        ),
        ("failed", _) => error(
            format!("meshd does not run: its unit failed ({}){}", unit.result, said()),
            "journalctl -u meshd -n 20, then: systemctl start meshd",
        ),
        ("activating", _) => error(
            format!("meshd does not run yet: systemd has started it {} times{}", unit.restarts, said()),
            "journalctl -u meshd -n 20",
        ),
        ("deactivating", _) => {
            error("meshd is stopping: open requests finish".into(), "in a minute: systemctl start meshd")
        }
        ("active" | "reloading", _) => error(
            "nobody answers on meshd's socket, and its unit is active".into(),
            "systemctl reload meshd; where that does not help: systemctl restart meshd, and keep the journal",
        ),
        (state, status) => error(
            format!("meshd does not run: its unit is {state} (last exit {status})"),
            "systemctl enable --now meshd",
        ),
    }
}

/// Reads `cap_net_admin cap_net_bind_service`; of others only that they are not these. An old systemd writes a number.
fn capabilities(text: &str) -> CapabilitySet {
    if let Ok(bits) = text.parse::<u64>() {
        return CapabilitySet::from_bits_retain(bits);
    }
    let known = |name: &str| match name {
        "cap_net_admin" => Some(CapabilitySet::NET_ADMIN),
        "cap_net_bind_service" => Some(CapabilitySet::NET_BIND_SERVICE),
        _ => None,
    };
    text.split_ascii_whitespace().filter_map(known).fold(CapabilitySet::empty(), |all, one| all | one)
}

const PROPERTIES: &str = "LoadState,ActiveState,Result,ExecMainStatus,NRestarts,InvocationID,User,AmbientCapabilities,CapabilityBoundingSet,LimitNOFILE,NFileDescriptorStore";
/// Of its last words, in characters.
const MOST_WORDS: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(state: &str, status: u8) -> Option<Unit> {
        Unit::read(&format!(
            "LoadState=loaded\nActiveState={state}\nResult=watchdog\nExecMainStatus={status}\nNRestarts=7\nUser=meshd\n\
             AmbientCapabilities=cap_net_bind_service cap_net_admin\nCapabilityBoundingSet=cap_net_admin cap_sys_time\n\
             LimitNOFILE=1048576\nNFileDescriptorStore=12\n"
        ))
    }

    #[test]
    fn each_state_of_the_unit_has_its_own_words_and_remedy() {
        let of = |unit: Option<&Unit>| judge(unit, |_| Some("cannot listen".into()));

        let failed = of(shown("failed", 78).as_ref());
        assert!(failed.what.contains("a person must put right: cannot listen"), "{failed:?}");
        assert!(of(shown("failed", 6).as_ref()).what.contains("its unit failed (watchdog): cannot listen"));
        assert!(of(shown("activating", 1).as_ref()).what.contains("started it 7 times: cannot listen"));
        assert!(of(shown("inactive", 0).as_ref()).fix.contains("systemctl enable --now"));
        assert!(of(shown("active", 0).as_ref()).what.contains("its unit is active"));
        assert!(of(None).fix.contains("meshd run"));
        let masked = Unit::read("LoadState=masked\nActiveState=inactive\nExecMainStatus=0\n");
        assert!(of(masked.as_ref()).fix.contains("systemctl unmask"));
        assert_eq!(Unit::read("LoadState=not-found\nActiveState=inactive\n"), None);
        assert_eq!(Unit::read(""), None);
    }

    #[test]
    fn its_rights_are_what_its_user_is_given_within_what_it_may_have() {
        let unit = shown("inactive", 0).expect("a unit");

        assert_eq!((unit.user(), unit.rights), ("meshd", CapabilitySet::NET_ADMIN));
        assert_eq!((unit.descriptors, unit.kept), (Some(1 << 20), 12));
        let root = Unit::read("LoadState=loaded\nCapabilityBoundingSet=cap_net_admin\n").expect("a unit");
        assert_eq!((root.user(), root.rights), ("root", CapabilitySet::NET_ADMIN));
        assert!(capabilities("5120").contains(CapabilitySet::NET_ADMIN | CapabilitySet::NET_BIND_SERVICE));
    }
}
