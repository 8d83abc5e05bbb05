//! Podman: whether the one of this machine can be used, and the words that it alone is told.

use tracing::info;

use super::engine::{Engine, LOOK_LIMIT, last_line, on_path};

/// The oldest version that hands our pipes on to the container as they are.
const OLDEST: u32 = 4;
/// What tells it where it keeps what.
pub(super) const ENVIRONMENT: &[&str] = &[
    "DBUS_SESSION_BUS_ADDRESS",
    "CONTAINERS_CONF",
    "CONTAINERS_CONF_OVERRIDE",
    "CONTAINERS_STORAGE_CONF",
    "CONTAINERS_REGISTRIES_CONF",
    "REGISTRY_AUTH_FILE",
];
/// Removes the container that is named next.
pub(super) const REMOVE: &[&str] = &["rm", "--force", "--ignore", "--time=0"];
/// With a terminal no keys leave a command behind that runs on unseen; Ctrl-P, the first of those that would, is a shell's.
pub(super) const NO_DETACH: &str = "--detach-keys=";
/// What every container is run with.
pub(super) const RUN: &[&str] = &[
    "--rm",
    // The container stays where its engine was started: in the attempt's cgroup.
    "--cgroups=disabled",
    // It writes into our pipes itself: nobody copies, and nothing is kept twice.
    "--log-driver=passthrough",
    // Whoever runs health checks is in no cgroup of ours.
    "--no-healthcheck",
    "--systemd=false",
    "--http-proxy=false",
];

/// Whether it can be used; `Err` is for people.
pub(super) async fn look(mut engine: Engine) -> Result<Engine, String> {
    let words = ["info", "--format", "{{.Host.OCIRuntime.Name}} {{.Version.Version}}"];
    let told = engine.run(&words, LOOK_LIMIT).await.map_err(|error| format!("`podman info`: {error}"))?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    let Some((runtime, version)) = text.trim().split_once(' ').filter(|_| told.status.success()) else {
        return Err(format!("`podman info` failed: {}", last_line(&told.stderr)));
    };
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < OLDEST) {
        return Err(format!("podman {version} is too old; {OLDEST}.0 or later is needed"));
    }
    // It puts every container into cgroups of its own, whatever it is told.
    if runtime == "runc" {
        if on_path("crun").is_none() {
            return Err(
                "podman makes containers with runc, which cannot leave them in our cgroups; install crun".to_owned()
            );
        }
        engine.found.runtime = Some("crun".to_owned());
    }
    info!(version, runtime = engine.found.runtime.as_deref().unwrap_or(runtime), "containers are run by podman");
    Ok(engine)
}
