//! What systemd says of a meshd that does not run.

use mesh_proto::look::{Check, Grade};

/// Says that meshd does not run, and what its unit made of it.
pub(super) fn standing() -> Vec<Check> {
    let shown = super::output_of(
        "systemctl",
        &["show", "meshd", "-p", "LoadState,ActiveState,Result,ExecMainStatus,NRestarts"],
    );
    vec![judge(shown.as_deref().unwrap_or_default())]
}

fn judge(shown: &str) -> Check {
    let value = |name: &str| {
        shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    let why = "traffic goes where it would go without meshd; the mesh avoids this host's instances";
    let error = |what: String, fix: &str| Check::new(Grade::Error, "meshd", what, why, fix);
    match (value("LoadState"), value("ActiveState"), value("ExecMainStatus")) {
        ("loaded", "failed", status @ ("78" | "64")) => error(
            format!("meshd does not run: it ended with {status}, which a person must put right"),
            "journalctl -u meshd -p err -n 20, then: systemctl start meshd",
        ),
        ("loaded", "activating", _) => error(
            format!("meshd does not run yet: systemd has started it {} times", value("NRestarts")),
            "journalctl -u meshd -n 20",
        ),
        ("loaded", state, status) => error(
            format!("meshd does not run: its unit is {state} (last exit {status})"),
            "systemctl enable --now meshd",
        ),
        _ => error("meshd does not run".into(), "meshd run (systemd has no unit for it here)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_a_person_must_put_right_is_told_from_one_that_is_stopped() {
        let of = |state: &str, status: u8| {
            judge(&format!("LoadState=loaded\nActiveState={state}\nExecMainStatus={status}\nNRestarts=7\n"))
        };

        assert!(of("failed", 78).what.contains("a person must put right"));
        assert!(of("activating", 1).what.contains("started it 7 times"));
        assert!(of("inactive", 0).fix.contains("systemctl enable --now"));
        assert!(judge("").fix.contains("meshd run"));
    }
}
