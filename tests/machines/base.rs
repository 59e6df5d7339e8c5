//! What all machines begin with: a Debian tree and a package, each made once for a run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use mesh_lab::Binaries;

/// Why no machine can boot here; `None` where it can.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("booting machines needs root".into());
    }
    let tools =
        ["debootstrap", "systemd-nspawn", "nsenter", "dpkg-deb", "rpmbuild", "objdump", "strip", "ip"];
    let lacking: Vec<&str> = tools.into_iter().filter(|tool| mesh_lab::which(tool).is_none()).collect();
    (!lacking.is_empty()).then(|| format!("not installed: {}", lacking.join(", ")))
}

/// The folder of what is kept for a run: `MESH_MACHINES_FOLDER`, else one under `/var/tmp`.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("MESH_MACHINES_FOLDER").map_or_else(|| "/var/tmp/meshd-machines".into(), PathBuf::from)
}

/// Which Debian the machines are: `MESH_MACHINES_SUITE` (such as `bullseye`), else the one of this machine.
fn suite() -> Option<String> {
    std::env::var("MESH_MACHINES_SUITE").ok()
}

/// Returns the Debian tree; makes it where it is not there. Takes about two minutes.
pub(crate) fn tree() -> Result<PathBuf> {
    let name = suite().map_or_else(|| "base".to_owned(), |suite| format!("base-{suite}"));
    let tree = folder().join(&name);
    let done = folder().join(format!("{name}.done"));
    if done.exists() {
        return Ok(tree);
    }
    if tree.exists() {
        std::fs::remove_dir_all(&tree)?;
    }
    std::fs::create_dir_all(folder())?;
    let (mirror, own) = mirror()?;
    let suite = suite().unwrap_or(own);
    let include = format!("--include={PACKAGES}");
    let tree_text = tree.display().to_string();
    run(Command::new("debootstrap").args(["--variant=minbase", &include, &suite, &tree_text, &mirror]))?;
    std::fs::write(&done, &suite)?;
    Ok(tree)
}

/// What the tree has beside the least: systemd, what meshd recommends, and what stories look at machines with.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,nftables,curl,ca-certificates,procps,python3";

/// The mirror and the suite that this machine itself installs from.
fn mirror() -> Result<(String, String)> {
    let format = "$(REPO_URI) $(CODENAME) $(ORIGIN)";
    let listed =
        run(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let found = listed.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        (words.next() == Some("Debian") && !suite.contains('-')).then(|| (uri.to_owned(), suite.to_owned()))
    });
    found.with_context(|| format!("apt installs from no Debian mirror here:\n{listed}"))
}

/// Returns the package of the binaries under test; `revision` makes it another version than the first.
pub(crate) fn package(revision: Option<&str>) -> Result<PathBuf> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let first = MADE.get_or_init(|| make("deb").map_err(|error| format!("{error:#}")));
    let first = first.clone().map_err(|error| anyhow::anyhow!("making the package: {error}"))?;
    let Some(revision) = revision else { return Ok(first) };
    let folder = folder().join("repack");
    let _ = std::fs::remove_dir_all(&folder);
    let (first, folder) = (first.display().to_string(), folder.display().to_string());
    run(Command::new("dpkg-deb").args(["--raw-extract", &first, &folder]))?;
    run(Command::new("sed").args([
        "-i",
        &format!("s/^Version: .*/&{revision}/"),
        &format!("{folder}/DEBIAN/control"),
    ]))?;
    let second = format!("{}{revision}.deb", first.trim_end_matches(".deb"));
    run(Command::new("dpkg-deb").args(["--root-owner-group", "-Zgzip", "-z1", "--build", &folder, &second]))?;
    Ok(second.into())
}

/// Returns the `.rpm` of the binaries under test.
pub(crate) fn rpm() -> Result<PathBuf> {
    make("rpm")
}

fn make(kind: &str) -> Result<PathBuf> {
    let binaries = Binaries::build()?;
    let folder = folder().join("packages").join(kind);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let script = root().join("packaging/package");
    let from = binaries.meshd.parent().context("a folder")?;
    run(Command::new(script).args([kind, "--quick", "--binaries"]).arg(from).arg("--out").arg(&folder))?;
    let made = std::fs::read_dir(&folder)?.next().context("no package was made")??;
    Ok(made.path())
}

/// The project's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Runs a command of the machine outside; its words are in the error.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}
