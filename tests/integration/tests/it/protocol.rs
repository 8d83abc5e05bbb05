//! The services that any gRPC client expects, asked by one that shares no code with us.

use std::{env, process::Command};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{skip::skip, system::System};

const CLIENT: &str = include_str!("../grpc_client.py");

#[test]
fn another_grpc_client_finds_health_and_reflection() -> Result<()> {
    let Some(python) = env::var_os("MUSTER_PYTHON") else {
        let why = env::var("MUSTER_NO_PYTHON")
            .unwrap_or_else(|_| "MUSTER_PYTHON is not set; `cargo xtask test` sets it".to_owned());
        return skip("protocol::another_grpc_client_finds_health_and_reflection", &why);
    };
    let system = System::plain()?;
    let output =
        Command::new(python).args(["-c", CLIENT, system.address()]).output().context("could not start Python")?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "the client failed:\n{said}\n{errors}");
    for line in ["health: SERVING", "service: muster.v1.Muster", "service: grpc.health.v1.Health", "method: Submit"] {
        ensure!(said.lines().any(|said| said == line), "the client did not see {line:?}:\n{said}");
    }
    system.finish()
}
