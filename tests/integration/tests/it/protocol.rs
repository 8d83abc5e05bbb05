//! The services that any gRPC client expects, asked by one that shares no code with us.

use std::{env, process::Command};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{skip::skip, system::System};

const CLIENT: &str = include_str!("../grpc_client.py");

/// Why there is no other client here; none: there is one.
pub(crate) fn missing() -> Option<String> {
    env::var_os("MUSTER_PYTHON").is_none().then(|| {
        env::var("MUSTER_NO_PYTHON")
            .unwrap_or_else(|_| "MUSTER_PYTHON is not set; `cargo xtask test` sets it".to_owned())
    })
}

/// Fails unless the client sees all that there should be at `host:port`.
pub(crate) fn ask(address: &str) -> Result<()> {
    let python = env::var_os("MUSTER_PYTHON").context("there is no other client")?;
    let output = Command::new(python).args(["-c", CLIENT, address]).output().context("could not start Python")?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "the client failed at {address}:\n{said}\n{errors}");
    for line in ["health: SERVING", "service: muster.v1.Muster", "service: grpc.health.v1.Health", "method: Submit"] {
        ensure!(said.lines().any(|said| said == line), "the client did not see {line:?} at {address}:\n{said}");
    }
    Ok(())
}

#[test]
fn another_grpc_client_finds_health_and_reflection() -> Result<()> {
    if let Some(why) = missing() {
        return skip("protocol::another_grpc_client_finds_health_and_reflection", &why);
    }
    let system = System::plain()?;
    ask(system.address())?;
    system.finish()
}
