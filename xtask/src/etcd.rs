//! The etcds that tests run against: the distribution's, and a newer one that Go builds from `tools/etcd`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{step, tree};

/// What `tools/etcd/go.mod` names, and where it ends up.
const PROGRAMS: &[(&str, &str)] = &[("etcd", "go.etcd.io/etcd/server/v3"), ("etcdctl", "go.etcd.io/etcd/etcdctl/v3")];
/// The one of the distribution.
const USUAL: &str = "/usr/bin/etcd";

/// The program for a version that a person named, or the path that it is.
pub(crate) fn program(version: &str) -> Result<PathBuf> {
    match version {
        "3.4" => Ok(PathBuf::from(USUAL)),
        "3.6" => newer().map_err(|why| anyhow::anyhow!("etcd 3.6 is not there: {why}")),
        path => {
            ensure!(Path::new(path).is_file(), "`{path}` is no etcd; say 3.4, 3.6, or a path");
            Ok(PathBuf::from(path))
        }
    }
}

/// The newer one, built on first use and again whenever its module changes.
pub(crate) fn newer() -> Result<PathBuf, String> {
    let home = tree::cache().join("etcd");
    let module = tree::root().join("tools/etcd");
    let wanted = fs::read_to_string(module.join("go.mod")).map_err(|error| format!("tools/etcd/go.mod: {error}"))?;
    let stamp = home.join("go.mod");
    let program = home.join("etcd");
    if program.is_file() && fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(program);
    }
    if !tree::on_path("go") {
        return Err("there is no go on the search path to build it with".to_owned());
    }
    let made = (|| {
        fs::create_dir_all(&home).with_context(|| format!("could not make {}", home.display()))?;
        for (name, package) in PROGRAMS {
            let mut build = Command::new("go");
            build.current_dir(&module).env("CGO_ENABLED", "0");
            build.args(["build", "-trimpath", "-mod=readonly", "-o"]).arg(home.join(name)).arg(package);
            ensure!(
                step::quietly(&format!("build {name} 3.6"), &mut build)?.ok,
                "go build failed; see its output above"
            );
        }
        // Last: what is half made has no stamp and is made again.
        fs::write(&stamp, &wanted).with_context(|| format!("could not write {}", stamp.display()))
    })();
    made.map(|()| program).map_err(|error| format!("{error:#}"))
}
