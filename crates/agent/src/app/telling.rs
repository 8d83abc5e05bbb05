//! What the log says of attempts: each line names the job, the task and, where it is known, the attempt.
//!
//! A plain start or end is no line unless somebody asks for it (`debug`): thousands of them in a second are a day's work.

use std::collections::BTreeMap;

use muster_core::{
    event::{Report, What},
    id::Token,
    state::End,
};
use tracing::{debug, enabled, info, warn};

use crate::{
    exec::ExecEvent,
    supervisor::{Action, Entry, Supervisor},
};

/// What it takes to name an attempt whose lease is over.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// Attempts whose end came and is not told yet: reports are of leases, and a lease that is over has no number any more.
    numbers: BTreeMap<Token, u32>,
}

impl Telling {
    /// Before the supervisor hears of it.
    pub(super) fn hear(&mut self, event: &ExecEvent, supervisor: &Supervisor) {
        match event {
            ExecEvent::Started { token, identity, .. } if enabled!(tracing::Level::DEBUG) => {
                if let Some(order) = supervisor.order(*token) {
                    let (job, task, attempt) = (order.task.job, order.task, order.attempt);
                    debug!(%job, %task, attempt, %token, pid = identity.pid, "an attempt runs");
                }
            }
            ExecEvent::Ended { token, end, .. } if is_remarkable(*end) || enabled!(tracing::Level::DEBUG) => {
                self.numbers.extend(supervisor.order(*token).map(|order| (*token, order.attempt)));
            }
            ExecEvent::Started { .. } | ExecEvent::Ended { .. } | ExecEvent::Withdrawn { .. } => {}
        }
    }

    /// Before what was decided is done.
    pub(super) fn tell(&mut self, actions: &[Action], supervisor: &Supervisor) {
        for action in actions {
            match action {
                Action::Journal(Entry::Report(report)) => self.report(report),
                Action::Kill { token, reason, grace } => {
                    let order = supervisor.order(*token);
                    let (job, task) = order.map(|order| (order.task.job.0, order.task.to_string())).unzip();
                    let (attempt, reason) = (order.map(|order| order.attempt), reason.text());
                    info!(job, task, attempt, %token, reason, ?grace, "ending an attempt");
                }
                _ => {}
            }
        }
        self.numbers.clear();
    }

    fn report(&self, Report { token, task, what, .. }: &Report) {
        let (job, attempt) = (task.job, self.numbers.get(token));
        match what {
            What::Started { .. } => {}
            What::Returned { why } => debug!(%job, %task, %token, %why, "a lease goes back"),
            What::Ended { end, why, .. } => {
                let why = why.as_deref();
                match end {
                    End::KillFailed => {
                        warn!(%job, %task, attempt, %token, why, "an attempt cannot be killed; its room stays taken");
                    }
                    End::NotStarted => info!(%job, %task, attempt, %token, why, "an attempt could not be started"),
                    end if is_remarkable(*end) => {
                        info!(%job, %task, attempt, %token, %end, why, "an attempt was ended")
                    }
                    end => debug!(%job, %task, attempt, %token, %end, why, "an attempt ended"),
                }
            }
        }
    }
}

/// Whether somebody who looks after the machine wants to know. A wish to end it was told before.
fn is_remarkable(end: End) -> bool {
    match end {
        End::Timeout | End::Oom | End::ScratchFull | End::Lost | End::NotStarted | End::KillFailed => true,
        // SIGKILL may be the end of its lease, seen by a keeper that was frozen until then.
        End::Signal(9) => true,
        End::Succeeded | End::Exit(_) | End::Signal(_) | End::Cancelled => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
        time::Duration,
    };

    use muster_core::{
        id::{AgentId, JobId, SessionId, TaskId, Term},
        resources::Request,
        spec::{Command, TaskSpec},
        time::{Mono, Now, Timestamp},
    };

    use super::*;
    use crate::{
        exec::{Order, ProcessIdentity},
        supervisor::{Config, Input, Memory, Unusable, Welcome},
    };

    const NOW: Now = Now { mono: Mono(1), wall: Timestamp(1) };

    /// What is logged.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panicked").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What the log says, at `level`, when these happen to an agent that runs 17.0 to 17.7, each for the second time.
    fn log(level: tracing::Level, inputs: Vec<Input>) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time().with_max_level(level);
        tracing::subscriber::with_default(subscriber.with_writer(move || writer.clone()).finish(), || {
            let (mut supervisor, mut telling) = (running(), Telling::default());
            for input in inputs {
                if let Input::Exec(event) = &input {
                    telling.hear(event, &supervisor);
                }
                let mut actions = Vec::new();
                supervisor.handle(NOW, input, &mut actions);
                telling.tell(&actions, &supervisor);
            }
        });
        let bytes = lines.0.lock().expect("nobody panicked").clone();
        String::from_utf8(bytes).expect("it is text")
    }

    fn running() -> Supervisor {
        let capacity = Request { cpu_milli: 8000, ..Request::default() };
        let mut supervisor = Supervisor::new(Config::new(capacity), Memory::default());
        let lease_ttl = Duration::from_secs(15);
        let welcome = Welcome {
            agent: AgentId(1),
            session: SessionId(1),
            term: Term(1),
            lease_ttl,
            heartbeat: lease_ttl / 5,
            drop: Vec::new(),
        };
        let command = Command::Argv(vec!["true".to_owned()]);
        let request = Request { cpu_milli: 1000, ..Request::default() };
        let spec = Arc::new(TaskSpec { name: "t".to_owned(), command, request, ..TaskSpec::default() });
        let order = |index: u32| {
            Arc::new(Order::plain(u64::from(index) + 100, TaskId::new(JobId(17), index), 2, Arc::clone(&spec)))
        };
        let orders = (0..8).map(order).collect();
        let leases = Input::Leases { term: Term(1), orders, unusable: Vec::new() };
        for input in [Input::Connected, Input::Welcome(welcome), leases] {
            supervisor.handle(NOW, input, &mut Vec::new());
        }
        supervisor
    }

    fn started(token: u64) -> Input {
        let identity = ProcessIdentity { boot: "b".into(), pid: 4711, start: 2, group: 3 };
        Input::Exec(ExecEvent::Started { token: Token(token), at: Timestamp(1), identity })
    }

    fn ended(token: u64, end: End) -> Input {
        let (token, why, started, ended) = (Token(token), Some("because".into()), Timestamp(1), Timestamp(1));
        Input::Exec(ExecEvent::Ended { token, end, why, started, ended, result: None, usage: None, next: None })
    }

    #[test]
    fn what_went_wrong_with_an_attempt_is_told_with_its_job_task_and_number() {
        let table = [
            (End::NotStarted, " INFO", "could not be started"),
            (End::Oom, " INFO", "end=out of memory"),
            (End::Timeout, " INFO", "end=timeout"),
            (End::ScratchFull, " INFO", "end=scratch full"),
            (End::Lost, " INFO", "end=lost"),
            (End::KillFailed, " WARN", "cannot be killed"),
        ];
        for (end, level, part) in table {
            let text = log(tracing::Level::INFO, vec![started(103), ended(103, end)]);
            let about = r#"job=17 task=17.3 attempt=2 token=103"#;
            let is_so = text.starts_with(level) && text.contains(about) && text.contains(part);
            assert!(is_so && text.contains(r#"why="because""#) && text.lines().count() == 1, "{end}: {text}");
        }
    }

    #[test]
    fn a_plain_start_and_end_are_told_only_to_who_asks() {
        for end in [End::Succeeded, End::Exit(3), End::Signal(15), End::Cancelled] {
            assert_eq!(log(tracing::Level::INFO, vec![started(103), ended(103, end)]), "", "{end}");
            let text = log(tracing::Level::DEBUG, vec![started(103), ended(103, end)]);
            let lines: Vec<_> = text.lines().filter(|line| line.contains("job=17 task=17.3 attempt=2")).collect();
            let [start, over] = &lines[..] else { panic!("{text}") };
            assert!(start.contains("pid=4711") && over.contains(&format!("end={end}")), "{text}");
        }
    }

    #[test]
    fn a_wish_to_end_an_attempt_is_told_and_so_is_a_lease_that_nobody_here_can_read() {
        let stop = Input::Stop { term: Term(1), token: Token(105) };
        let text = log(tracing::Level::INFO, vec![stop, ended(105, End::Cancelled)]);
        assert!(text.contains(r#"ending an attempt job=17 task="17.5" attempt=2 token=105"#), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        let order = Unusable { token: Token(900), task: TaskId::new(JobId(17), 9), why: "it is of the future".into() };
        let leases = Input::Leases { term: Term(1), orders: Vec::new(), unusable: vec![order] };
        let text = log(tracing::Level::INFO, vec![leases]);
        assert!(text.contains("job=17 task=17.9 token=900") && text.contains("of the future"), "{text}");
    }
}
