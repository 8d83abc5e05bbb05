//! Leases without an agent, with one whose disk stands still, and after a restart of the machine: what may go on goes on, and
//! nothing else does.

use std::{fs, path::Path, process::Command, sync::mpsc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    daemon::freeze,
    skip::skip,
    system::{Options, System},
    wait::{self, Look},
};
use nix::{
    sys::{ptrace, signal::Signal},
    unistd::Pid,
};
use serde_json::Value;

use crate::keeper::{keeper, parent};

/// A task that says its number in `<name>.pid`, and does `more` then.
fn task(system: &System, name: &str, lines: &str, more: &str) -> Result<u64> {
    let pid = system.folder().join(format!("{name}.pid"));
    let shell = format!("echo $$ >{0}.new; mv {0}.new {0}; {more}", pid.display());
    let text = format!("name = \"{name}\"\n[[tasks]]\nname = \"a\"\n{lines}\nshell = '''{shell}'''\n");
    let job = system.submit(&format!("{name}.toml"), &text)?;
    wait::until(&format!("{name} to begin"), || Ok(Look::when(pid.exists(), "it has not")))?;
    Ok(job)
}

fn gated(system: &System) -> String {
    format!("until test -e {}; do sleep 0.05; done", system.folder().join("gate").display())
}

fn open_gate(system: &System) -> Result<()> {
    Ok(fs::write(system.folder().join("gate"), "")?)
}

/// Whether the process of a task is over; its parent, which would collect it, may be frozen.
pub(crate) fn is_dead(system: &System, name: &str) -> Result<bool> {
    let pid = fs::read_to_string(system.folder().join(format!("{name}.pid")))?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    Ok(stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z')))
}

fn attempts(system: &System, job: u64) -> Result<Vec<Value>> {
    let shown = system.ctl().json(&["show", &job.to_string(), "--tasks"])?;
    Ok(shown["tasks"][0]["attempts"].as_array().context("attempts")?.clone())
}

fn short(agent: &str, spool: Option<std::path::PathBuf>) -> Options {
    let env = vec![("MUSTER_LOG".to_owned(), "info,muster_agent::app=debug".to_owned())];
    Options { lease_ttl: Duration::from_secs(3), agent: agent.to_owned(), spool, env, ..Options::default() }
}

/// May go on without an agent.
const STAYS: &str = "on_disconnect = \"continue\"\nmax_disconnect = \"1h\"";

/// Writes lines until there is a gate.
fn talks(system: &System) -> String {
    let [gate, lines] = ["gate", "lines"].map(|name| system.folder().join(name));
    format!("while ! test -e {}; do echo line >>{}; sleep 0.05; done", gate.display(), lines.display())
}

/// Waits until whoever [`talks`] has gone on for several times as long as a safe waits when somebody is not dead in time.
fn goes_on(system: &System) -> Result<()> {
    let lines = system.folder().join("lines");
    let count = || Ok::<_, anyhow::Error>(fs::read_to_string(&lines)?.lines().count());
    let before = count()?;
    wait::until("what may go on to go on", || {
        ensure!(!system.was_late(), "the safe ended all");
        let now = count()?;
        Ok(Look::when(now > before + 100, now - before))
    })
}

#[test]
fn what_may_go_on_alone_goes_on_without_any_agent() -> Result<()> {
    System::unless_late(&short("", None), |system| {
        let job = task(system, "stays", STAYS, &talks(system))?;
        let plain = task(system, "plain", "on_lost = \"fail\"", "exec sleep 600")?;
        system.agent()?.kill9()?;
        wait::until("plain to be dead", || Ok(Look::when(is_dead(system, "plain")?, "it lives")))?;
        let went_on = goes_on(system);
        system.start_agent()?;
        open_gate(system)?;
        went_on?;
        ensure!(system.ctl().finished(job, wait::LIMIT)?["state"] == "succeeded", "{:?}", attempts(system, job)?);
        ensure!(attempts(system, job)?.len() == 1, "{:?}", attempts(system, job)?);
        ensure!(system.ctl().finished(plain, wait::LIMIT)?["state"] == "failed", "{:?}", attempts(system, plain)?);
        Ok(())
    })
}

#[test]
fn however_long_its_grace_nothing_outlives_its_lease_while_its_agent_is_frozen() -> Result<()> {
    System::unless_late(&short("", None), |system| {
        let stubborn = "trap '' TERM; while :; do sleep 0.05; done";
        let ended = task(system, "ended", "grace = \"1h\"\non_lost = \"fail\"", stubborn)?;
        let other = task(system, "stays", STAYS, &gated(system))?;
        let plain = task(system, "plain", "on_lost = \"fail\"", "exec sleep 600")?;
        system.ctl().run(&["cancel", &ended.to_string()])?.expect(0)?;
        wait::until("it to be asked to end", || {
            let log = system.agent()?.log();
            Ok(Look::when(log.contains("ending an attempt"), "nobody asked"))
        })?;
        system.agent()?.freeze()?;
        for name in ["plain", "ended"] {
            wait::until(&format!("{name} to be dead"), || Ok(Look::when(is_dead(system, name)?, "it lives")))?;
        }
        // The safe, which ends everything, was not needed.
        let was_ended = is_dead(system, "stays")?;
        system.agent()?.signal(Signal::SIGCONT)?;
        ensure!(!was_ended, "it was ended, though it may go on for an hour");
        open_gate(system)?;
        for job in [ended, plain, other] {
            system.ctl().finished(job, wait::LIMIT)?;
            ensure!(attempts(system, job)?.len() == 1, "{:?}", attempts(system, job)?);
        }
        Ok(())
    })
}

/// A file system of a test's own, on which nobody can write for a while.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn make(image: &Path, at: &'a Path) -> Result<Option<Self>> {
        fs::create_dir_all(at)?;
        fs::File::create(image)?.set_len(64 << 20)?;
        let done = |program: &str, arguments: &[&std::ffi::OsStr]| {
            Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
        };
        let is_there = done("mke2fs", &["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), image.as_os_str()])
            && done("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), at.as_os_str()]);
        Ok(is_there.then_some(Self(at)))
    }

    fn freeze(&self) -> Result<Frozen<'a>> {
        let output = Command::new("fsfreeze").arg("--freeze").arg(self.0).output()?;
        ensure!(output.status.success(), "fsfreeze: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Frozen(self.0))
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _somebody_stays = Command::new("umount").arg("--lazy").arg(self.0).output();
    }
}

/// Nobody can write there. To be dropped before whoever wants to, who would wait for ever.
struct Frozen<'a>(&'a Path);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let thawed = Command::new("fsfreeze").arg("--unfreeze").arg(self.0).status();
        assert!(thawed.is_ok_and(|status| status.success()), "{} stays frozen", self.0.display());
    }
}

#[test]
fn a_disk_that_stands_still_for_longer_than_a_lease_ends_nothing_that_is_renewed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path().join("disk");
    let name = "a_disk_that_stands_still_for_longer_than_a_lease_ends_nothing_that_is_renewed";
    let Some(disk) = Disk::make(&folder.path().join("image"), &at)? else {
        return skip(name, "no file system can be made and mounted here");
    };
    let lease_ttl = Duration::from_secs(10);
    let mut system = System::start(Options { lease_ttl, ..short("", Some(at.join("agent"))) })?;
    // As many as there are threads that write output.
    let talks = format!("while ! test -e {}; do echo line; sleep 0.05; done", system.folder().join("gate").display());
    let mut jobs = Vec::new();
    for name in ["one", "two", "three"] {
        jobs.push(task(&system, name, "on_lost = \"fail\"", &talks)?);
    }
    jobs.push(task(&system, "quiet", "on_lost = \"fail\"", &gated(&system))?);
    for job in &jobs {
        wait::until("it to be known as running", || {
            let running = attempts(&system, *job)?.iter().any(|attempt| attempt["started_at"].is_string());
            Ok(Look::when(running, "it is not"))
        })?;
    }
    // By then the agent has noted that its reports were heard: its journal is on that disk, too.
    beats(&mut system, 2)?;
    let frozen = disk.freeze()?;
    // A fifth of a lease each: two leases.
    beats(&mut system, 10)?;
    for name in ["one", "two", "three", "quiet"] {
        ensure!(!is_dead(&system, name)?, "{name} was ended");
    }
    drop(frozen);
    open_gate(&system)?;
    for job in jobs {
        ensure!(system.ctl().finished(job, wait::LIMIT)?["state"] == "succeeded", "{:?}", attempts(&system, job)?);
    }
    system.finish()
}

/// Waits until the agent has heard so many answers more to its heartbeats.
pub(crate) fn beats(system: &mut System, count: usize) -> Result<()> {
    let heard =
        |system: &mut System| Ok::<_, anyhow::Error>(system.agent()?.log().matches("a heartbeat was answered").count());
    let before = heard(system)?;
    wait::until("heartbeats to be answered", || {
        let now = heard(system)?;
        Ok(Look::when(now >= before + count, now - before))
    })
}

#[test]
fn what_waits_to_hand_on_its_result_when_its_lease_ends_takes_nobody_with_it() -> Result<()> {
    System::unless_late(&short("", None), |system| {
        let result = system.folder().join("result");
        let stays = task(system, "stays", STAYS, &talks(system))?;
        // More than goes with the word of its end.
        let large = format!(
            "until test -e {}; do sleep 0.05; done; (printf '\"'; head -c 100000 /dev/zero | tr '\\0' x; printf '\"') >\"$MUSTER_RESULT.new\"; \
             mv \"$MUSTER_RESULT.new\" \"$MUSTER_RESULT\"",
            result.display()
        );
        let large = task(system, "large", "on_lost = \"fail\"", &large)?;
        let plain = task(system, "plain", "on_lost = \"fail\"", "exec sleep 600")?;
        system.controller()?.kill9()?;
        fs::write(result, "")?;
        for name in ["large", "plain"] {
            wait::until(&format!("{name} to be dead"), || Ok(Look::when(is_dead(system, name)?, "it lives")))?;
        }
        let went_on = goes_on(system);
        system.start_controller()?;
        open_gate(system)?;
        went_on?;
        for job in [stays, large, plain] {
            system.ctl().finished(job, wait::LIMIT)?;
        }
        ensure!(attempts(system, stays)?.len() == 1, "{:?}", attempts(system, stays)?);
        Ok(())
    })
}

#[test]
fn who_took_another_environment_is_ended_with_its_lease_when_its_keeper_is_frozen() -> Result<()> {
    let mut system = System::start(short("", None))?;
    let job = task(&system, "hides", "on_lost = \"fail\"", "exec env -i sleep 600")?;
    let keeper = nix::unistd::Pid::from_raw(keeper(&system)?);
    system.agent()?.freeze()?;
    freeze(keeper.as_raw())?;
    wait::until("it to be dead", || Ok(Look::when(is_dead(&system, "hides")?, "it lives")))?;
    nix::sys::signal::kill(keeper, Signal::SIGCONT)?;
    system.agent()?.signal(Signal::SIGCONT)?;
    ensure!(system.ctl().finished(job, wait::LIMIT)?["state"] == "failed", "{:?}", attempts(&system, job)?);
    system.finish()
}

/// Holds a process where it hangs in the kernel once it is killed (`PTRACE_EVENT_EXIT`), until it is dropped.
struct Hung {
    _let_go: mpsc::SyncSender<()>,
}

impl Hung {
    /// None: it may not be traced here.
    fn hold(pid: i32) -> Option<Self> {
        let ((let_go, asked), (say, held)) = (mpsc::sync_channel(1), mpsc::sync_channel(1));
        // Whom a thread traces goes on when that thread ends.
        std::thread::spawn(move || {
            let is_held = ptrace::seize(Pid::from_raw(pid), ptrace::Options::PTRACE_O_TRACEEXIT).is_ok();
            let _nobody_waits = say.send(is_held);
            let _dropped: Result<(), _> = asked.recv();
        });
        held.recv().unwrap_or(false).then_some(Self { _let_go: let_go })
    }
}

#[test]
fn who_left_the_session_is_dead_with_its_lease_though_the_first_process_hangs_and_the_disk_stands_still() -> Result<()>
{
    let name = "who_left_the_session_is_dead_with_its_lease_though_the_first_process_hangs_and_the_disk_stands_still";
    let mut system = System::start(short("", None))?;
    let (folder, spool) = (system.folder().to_owned(), system.folder().join("agent/spool"));
    // Whoever opens its file of output waits until somebody reads it, as with a disk that stands still; that is the keeper, as
    // soon as the one in a session of its own says something: when the group of the first process was struck, which hangs, and
    // the safe was told.
    let strays = format!(
        "trap \"\" TERM; echo $$ >{0}/stray.new; mv {0}/stray.new {0}/stray.pid; \
         while grep -q \") [RSD] \" /proc/$1/stat; do sleep 0.01; done; sleep 0.5; echo word; exec sleep 600",
        folder.display()
    );
    let shell = format!(
        "exec 2>{1}/said; trap \"\" TERM; mkfifo {0}/$MUSTER_TOKEN.log; echo $MUSTER_TOKEN >{1}/token; sleep 600 & \
         setsid sh -c \"$STRAY\" sh $! & wait; wait",
        spool.display(),
        folder.display()
    );
    let job = task(&system, "first", &format!("on_lost = \"fail\"\nenv = {{ STRAY = '''{strays}''' }}"), &shell)?;
    wait::until("the other one to begin", || Ok(Look::when(folder.join("stray.pid").exists(), "it has not")))?;
    let first = fs::read_to_string(folder.join("first.pid"))?.trim().parse()?;
    let Some(hung) = Hung::hold(first) else { return skip(name, "no process can be traced here") };
    system.agent()?.freeze()?;
    let died = wait::until("the other one to be dead", || Ok(Look::when(is_dead(&system, "stray")?, "it lives")));
    // Then the disk goes on, for whoever waits for it.
    let fifo = spool.join(format!("{}.log", fs::read_to_string(folder.join("token"))?.trim()));
    let reader = fs::File::options().read(true).write(true).open(&fifo);
    let _it_was_never_read = fs::remove_file(fifo);
    drop((hung, reader));
    system.agent()?.signal(Signal::SIGCONT)?;
    died?;
    ensure!(system.ctl().finished(job, wait::LIMIT)?["state"] == "failed", "{:?}", attempts(&system, job)?);
    ensure!(attempts(&system, job)?.len() == 1, "{:?}", attempts(&system, job)?);
    Ok(())
}

#[test]
fn a_keeper_with_other_settings_is_replaced_once_its_work_is_over() -> Result<()> {
    // The work is to live while there is no agent, however slowly the next one starts.
    let lease_ttl = Duration::from_secs(30);
    let mut system = System::start(Options { lease_ttl, ..short("cpus = 4\n", None) })?;
    let first = task(&system, "first", "", &gated(&system))?;
    let before = keeper(&system)?;
    system.agent()?.stop()?;
    system.configure_agent("cpus = 4\nlog_limit = \"1MiB\"\n");
    system.start_agent()?;
    ensure!(keeper(&system)? == before, "work goes on in its keeper");
    open_gate(&system)?;
    ensure!(system.ctl().finished(first, wait::LIMIT)?["state"] == "succeeded", "{:?}", attempts(&system, first)?);
    // Whether it comes before the other keeper is there or after that.
    let next = task(&system, "next", "", "exit 0")?;
    ensure!(system.ctl().finished(next, wait::LIMIT)?["state"] == "succeeded", "{:?}", attempts(&system, next)?);
    wait::until("another keeper", || {
        let now = keeper(&system)?;
        Ok(Look::when(now != before, now))
    })?;
    system.finish()
}

#[test]
fn what_ran_when_its_machine_was_restarted_is_lost_and_says_so() -> Result<()> {
    let mut system = System::start(short("", None))?;
    let job = task(&system, "ran", "on_lost = \"fail\"", "exec sleep 600")?;
    let keeper = keeper(&system)?;
    // As at a loss of power, nobody says a word: agent, safe, keeper, then what they ran.
    system.agent()?.kill9()?;
    let ran: i32 = fs::read_to_string(system.folder().join("ran.pid"))?.trim().parse()?;
    for pid in [parent(keeper)?, keeper] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?;
    }
    // Its lease may have ended by now, and with that it.
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(ran), Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => return Err(error.into()),
    }
    wait::until("it to be dead", || Ok(Look::when(is_dead(&system, "ran")?, "it lives")))?;
    let boot = system.folder().join("agent/boot");
    ensure!(!fs::read_to_string(&boot)?.trim().is_empty(), "the agent does not know in which start it ran");
    fs::write(&boot, "a start before this one")?;
    system.start_agent()?;
    ensure!(system.ctl().finished(job, wait::LIMIT)?["state"] == "failed", "{:?}", attempts(&system, job)?);
    let ended = attempts(&system, job)?;
    ensure!(ended.len() == 1 && ended[0]["end"]["kind"] == "lost", "{ended:?}");
    ensure!(ended[0]["end"]["reason"] == "the machine was restarted", "{ended:?}");
    system.finish()
}
