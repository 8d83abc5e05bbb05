//! How fast `exec` runs `true`, as a share of a bare `posix_spawn` and `waitpid` loop in the same run.
//!
//! `cargo run --release -p muster-agent --example spawn_bench [TASKS] [AT_A_TIME] [ROUNDS]`

#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
fn main() -> anyhow::Result<()> {
    use std::io::Write;

    use muster_agent::cgroup::Enforce;
    let number = |at: usize, default: u64| std::env::args().nth(at).map_or(Ok(default), |text| text.parse());
    let (tasks, lanes, rounds) = (number(1, 4000)?, number(2, 2)?, number(3, 3)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{tasks} times true, {lanes} at a time")?;
    for _ in 0..rounds {
        let before = bench::cpu_ms();
        let bare = bench::bare(tasks, lanes);
        let between = bench::cpu_ms();
        let exec = runtime.block_on(bench::exec(tasks, lanes, Enforce::Auto))?;
        let after = bench::cpu_ms();
        let free = runtime.block_on(bench::exec(tasks, lanes, Enforce::Off))?;
        writeln!(
            out,
            "bare {bare:6.0}/s   exec {exec:6.0}/s   share {:.3}   without cgroups {free:6.0}/s",
            exec / bare
        )?;
        // On a machine that does other work too, this is the steadier of the two.
        let each = |from: [u64; 2], to: [u64; 2]| [0, 1].map(|at| (to[at] - from[at]) as f64 * 1000.0 / tasks as f64);
        let ([own, children], [own_exec, children_exec]) = (each(before, between), each(between, after));
        let share = (own + children) / (own_exec + children_exec);
        writeln!(
            out,
            "  processor time of a task: bare {own:.0} + {children:.0} us, exec {own_exec:.0} + {children_exec:.0} us   share {share:.3}"
        )?;
    }
    Ok(())
}

#[cfg(unix)]
mod bench {
    use std::{
        ffi::{CStr, CString},
        path::Path,
        sync::Arc,
    };

    use futures::future::BoxFuture;
    use muster_agent::{
        cgroup::Enforce,
        exec::{Config, Exec, ExecEvent, Inputs, Links, Order, Results, Rules, TransferError},
        logs::{self, Spools},
    };
    use muster_common::clock::Clock;
    use muster_core::{
        id::{JobId, TaskId, Token},
        resources::Request,
        spec::{Command, TaskSpec},
    };
    use nix::{
        spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn},
        sys::wait::waitpid,
    };

    /// Processor time of this process, and of its children, so far; at 100 ticks a second.
    pub(super) fn cpu_ms() -> [u64; 2] {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: Vec<u64> = fields.skip(11).take(4).filter_map(|ticks| ticks.parse().ok()).collect();
        [ticks.iter().take(2).sum::<u64>() * 10, ticks.iter().skip(2).sum::<u64>() * 10]
    }

    /// Per second.
    fn rate(tasks: u64, clock: Clock, from: muster_core::time::Mono) -> f64 {
        tasks as f64 / clock.mono().since(from).as_secs_f64()
    }

    pub(super) fn bare(tasks: u64, lanes: u64) -> f64 {
        let clock = Clock::system();
        let from = clock.mono();
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                scope.spawn(move || {
                    let actions = PosixSpawnFileActions::init().expect("made");
                    let attributes = PosixSpawnAttr::init().expect("made");
                    // Ours, as C's `environ`: a locale alone makes `true` half as slow again.
                    let environment: Vec<CString> = std::env::vars()
                        .filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok())
                        .collect();
                    for _ in 0..tasks / lanes {
                        let args: [&CStr; 1] = [c"true"];
                        let pid = posix_spawn(c"/bin/true", &actions, &attributes, &args, &environment);
                        waitpid(pid.expect("starts"), None).expect("ends");
                    }
                });
            }
        });
        rate(tasks, clock, from)
    }

    pub(super) async fn exec(tasks: u64, lanes: u64, enforce: Enforce) -> anyhow::Result<f64> {
        let folder = tempfile::tempdir()?;
        let spools = Spools::open(&logs::Config::new(folder.path().to_owned()))?;
        let links = Links { inputs: Arc::new(Nobody), results: Arc::new(Nobody), spools };
        let clock = Clock::system();
        let config = Config {
            data_dir: folder.path().to_owned(),
            agent: "b".into(),
            clock,
            path: None,
            enforce,
            rules: Rules::default(),
            containers: None,
            guard: None,
            estate: None,
        };
        let (exec, mut events) = Exec::new(config, links).await?;
        let command = Command::Argv(vec!["true".into()]);
        let request = Request { cpu_milli: 1000, memory: 256 << 20, ..Request::default() };
        let pids = Some(100);
        let spec = Arc::new(TaskSpec { name: "t".into(), command, request, pids, ..TaskSpec::default() });
        let from = clock.mono();
        let (mut started, mut over) = (0, 0);
        while over < tasks {
            while started < tasks && started - over < lanes {
                started += 1;
                exec.start(Arc::new(order(started, Arc::clone(&spec))));
            }
            if let Some(ExecEvent::Ended { .. }) = events.recv().await {
                over += 1;
            }
        }
        let rate = rate(tasks, clock, from);
        exec.stop().await;
        Ok(rate)
    }

    fn order(token: u64, spec: Arc<TaskSpec>) -> Order {
        Order {
            token: Token(token),
            task: TaskId::new(JobId(1), 0),
            attempt: 1,
            spec,
            group: 0,
            job_name: "bench".into(),
            queue: "default".into(),
            trace_parent: "".into(),
            element: None,
            has_inputs: false,
        }
    }

    struct Nobody;

    impl Inputs for Nobody {
        fn fetch<'a>(&'a self, _order: &'a Order, _to: &'a Path) -> BoxFuture<'a, Result<(), TransferError>> {
            Box::pin(std::future::ready(Err(TransferError("nobody".into()))))
        }
    }

    impl Results for Nobody {
        fn put<'a>(
            &'a self,
            _token: Token,
            _task: TaskId,
            _from: &'a Path,
        ) -> BoxFuture<'a, Result<u64, TransferError>> {
            Box::pin(std::future::ready(Err(TransferError("nobody".into()))))
        }
    }
}
