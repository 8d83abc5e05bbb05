//! The first admin's token: where tokens are asked for and no admin has one, whoever owns the data folder gets one there.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context as _;
use muster_common::{clock::Clock, token};
use muster_core::{
    access::{Caller, Enforcement, NewToken, Reach, Role, Who},
    event::Event,
    time::Timestamp,
};

use crate::{config::Access, engine::Handle, view::View};

/// In the data folder.
pub const FILE: &str = "admin.token";

/// Makes the token if it is needed, or asked for. The secret is in the file and nowhere else: no log has it.
///
/// What fails is told to the log: a controller that runs without is better than none, and its next start tries again.
pub(super) async fn ensure(folder: &Path, handle: &Handle, view: &View, clock: Clock, access: &Access) {
    if is_needed(view, clock, access)
        && let Err(error) = make(folder, handle).await
    {
        tracing::error!(error = format!("{error:#}"), "no token for an admin could be made; mend it and start again");
    }
}

fn is_needed(view: &View, clock: Clock, access: &Access) -> bool {
    // A process that leads again was asked once.
    static MADE: AtomicBool = AtomicBool::new(false);
    if access.new_admin_token && !MADE.swap(true, Ordering::Relaxed) {
        return true;
    }
    let now = clock.wall();
    let snapshot = view.load();
    let has_admin = snapshot.tokens.values().any(|token| token.role == Role::Admin && token.is_live(now));
    let enforced = match access.enforcement {
        Enforcement::Never => false,
        Enforcement::Always => true,
        Enforcement::WithTokens => !snapshot.tokens.is_empty(),
    };
    enforced && !has_admin
}

async fn make(folder: &Path, handle: &Handle) -> anyhow::Result<()> {
    let fresh = token::generate();
    let path = folder.join(FILE);
    write(&path, &fresh.text).with_context(|| format!("cannot write the admin's token to {}", path.display()))?;
    let muster = Arc::new(Caller { who: Who::Muster, peer: "".into(), reach: Reach::All });
    let new = NewToken {
        id: fresh.id.as_str().into(),
        name: format!("admin-{}", fresh.id).into(),
        role: Role::Admin,
        reach: Reach::All,
        digest: fresh.digest,
        by: muster.who.name().into(),
        expires: Timestamp(0),
    };
    if let Err(error) = handle.ask(Event::CreateToken(new).by(&muster)).await {
        // A token that nobody knows would only be tried in vain.
        drop(fs::remove_file(&path));
        return Err(anyhow::Error::new(error).context("the first admin's token cannot be made"));
    }
    tracing::info!(file = %path.display(), token = fresh.id, "a token for an admin was made; ctl takes it with --token-file");
    Ok(())
}

/// A whole file that only its owner reads, or none.
fn write(path: &PathBuf, text: &str) -> std::io::Result<()> {
    let draft = path.with_extension("token.new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&draft)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&draft, path)
}
