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

use crate::{
    config::{Access, Config},
    engine::{self, Handle},
    view::View,
};

/// In the data folder.
pub const FILE: &str = "admin.token";
/// A store that was away is loaded again while the next question waits.
const TRIES: u32 = 5;

/// Makes the token if it is needed, or asked for. The secret is in the file and nowhere else: no log has it.
///
/// What fails is told to the log: a controller that runs without is better than none, and its next start tries again.
pub(super) async fn ensure(folder: &Path, handle: &Handle, view: &View, clock: Clock, access: &Access) {
    if is_needed(view, clock, access)
        && let Err(error) = make(folder, handle, view).await
    {
        tracing::error!(error = format!("{error:#}"), "no token for an admin could be made; mend it and start again");
    }
}

/// Tells a person who may not have meant it that the door is open.
pub(super) fn warn_if_open(view: &View, config: &Config) {
    if is_open(config, view.load().tokens.is_empty()) {
        tracing::warn!(
            listen = %config.listen,
            "no access token exists: whoever reaches this port may do everything; make one with `ctl admin token create \
             --name NAME --role admin`, or start with --require-token"
        );
    }
}

/// Whether strangers on other machines may do everything. On this one, somebody works alone.
fn is_open(config: &Config, no_token: bool) -> bool {
    let asks = match config.access.enforcement {
        Enforcement::Never => false,
        Enforcement::WithTokens => !no_token,
        Enforcement::Always => true,
    };
    !asks && !config.listen.ip().is_loopback()
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

async fn make(folder: &Path, handle: &Handle, view: &View) -> anyhow::Result<()> {
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
    if let Err(error) = ask(new, &muster, handle, view).await {
        if matches!(error, engine::Error::Refused(_)) {
            // A token that nobody knows would only be tried in vain. Where nobody can say whether it is known, it stays:
            // it may be the only one there will ever be.
            drop(fs::remove_file(&path));
        }
        return Err(anyhow::Error::new(error).context("the first admin's token cannot be made"));
    }
    tracing::info!(file = %path.display(), token = fresh.id, "a token for an admin was made; ctl takes it with --token-file");
    Ok(())
}

/// Until it is known what became of it: the store may take the token and not be able to say so.
async fn ask(new: NewToken, muster: &Arc<Caller>, handle: &Handle, view: &View) -> Result<(), engine::Error> {
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match handle.ask(Event::CreateToken(new.clone()).by(muster)).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if view.load().tokens.contains_key(&new.id) {
            return Ok(());
        }
        if tries == TRIES || matches!(error, engine::Error::Refused(_)) {
            return Err(error);
        }
    }
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
    fs::rename(&draft, path)?;
    // The store is about to say that there is an admin: the file must outlive a power cut, too.
    #[cfg(unix)]
    path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use muster_core::{audit::Note, cluster};
    use tokio::{sync::mpsc, time::timeout};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        dispatch::Sessions,
        engine,
        store::memory::{Fate, Memory},
    };

    #[test]
    fn an_open_door_is_told_of_where_others_can_come_in() {
        let table = [
            ("127.0.0.1:1", Enforcement::WithTokens, true, false),
            ("0.0.0.0:1", Enforcement::WithTokens, true, true),
            ("[::]:1", Enforcement::WithTokens, true, true),
            ("0.0.0.0:1", Enforcement::WithTokens, false, false),
            ("0.0.0.0:1", Enforcement::Always, true, false),
            ("0.0.0.0:1", Enforcement::Never, false, true),
        ];
        for (listen, enforcement, no_token, open) in table {
            let access = Access { enforcement, ..Access::default() };
            let config = Config { listen: listen.parse().unwrap(), access, ..Config::default() };
            assert_eq!(is_open(&config, no_token), open, "{listen} {enforcement:?} {no_token}");
        }
    }

    #[tokio::test]
    async fn the_token_in_the_file_is_one_that_is_good_whatever_the_store_did_meanwhile() {
        for fates in [vec![], vec![Fate::UnknownApplied], vec![Fate::UnknownNotApplied]] {
            let told = format!("{fates:?}");
            let (forget, _forgotten) = mpsc::channel(8);
            let (store, view, stop) = (Memory::default(), View::default(), CancellationToken::new());
            let parts = engine::Parts {
                store: Arc::new(store.clone()),
                sessions: Sessions::new(forget),
                view: view.clone(),
                clock: Clock::system(),
                config: cluster::Config::default(),
                heartbeat: Duration::from_secs(3),
            };
            let (handle, engine) = engine::start(parts).await.unwrap();
            let running = tokio::spawn(engine.run(stop.clone()));
            // What is committed first is not what the fate is for.
            let caller = Arc::new(Caller::anonymous(""));
            handle.ask(Event::Note(Note::done(&caller, "test", "", ""))).await.unwrap();
            store.script(fates);
            let folder = tempfile::tempdir().unwrap();
            let access = Access { enforcement: Enforcement::Always, ..Access::default() };
            let made = ensure(folder.path(), &handle, &view, Clock::system(), &access);
            timeout(Duration::from_secs(20), made).await.unwrap();
            let text = fs::read_to_string(folder.path().join(FILE)).unwrap_or_else(|error| panic!("{told}: {error}"));
            let shown = token::parse(&text).unwrap();
            let known = view.load().tokens.get(shown.id.as_str()).map(|token| (token.role, token.digest));
            assert_eq!(known, Some((Role::Admin, shown.digest)), "{told}");
            assert_eq!(view.load().tokens.len(), 1, "{told}");
            stop.cancel();
            running.await.unwrap();
        }
    }
}
