//! Everything that can be said, for the properties of the translation.

mod access;
mod link;
mod record;
mod spec;
mod version;
mod work;

use std::{sync::Arc, time::Duration};

use muster_core::{
    container::{Container, Volume},
    fleet::{Cordon, Limits},
    id::{AgentId, JobId, TaskId, Token},
    record::{AgentRecord, Cancel, Enforced, Facts, Gpu, Job, Key, Meta, Offer, Piece, Queue, TaskResult},
    resources::{IoLimits, Request},
    run_as::{RunAs, Scratch},
    spec::{
        After, Array, Command, JobSpec, LabelRule, On, OnLost, OomRetries, Priority, Requires, RetryPolicy, Role,
        TaskSpec,
    },
    state::{Attempt, Chunk, End, State, Stopping, Task},
    time::Timestamp,
    usage::{Amount, Unenforced, Usage},
};
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
};

use super::spec::TIMESTAMP_MAX;

fn words() -> impl Strategy<Value = String> {
    prop_oneof![8 => "[a-z0-9 _/.-]{0,12}", 1 => any::<String>()]
}

fn arcs() -> impl Strategy<Value = Arc<str>> {
    words().prop_map(Arc::from)
}

/// An empty text and none are one thing on the wire.
fn some_words() -> impl Strategy<Value = Option<String>> {
    option::of(words().prop_filter("some", |text| !text.is_empty()))
}

fn why() -> impl Strategy<Value = Option<Arc<str>>> {
    some_words().prop_map(|text| text.map(Arc::from))
}

fn times() -> impl Strategy<Value = Timestamp> {
    prop_oneof![Just(0), any::<u64>(), 1_700_000_000_000_000..1_800_000_000_000_000_u64].prop_map(Timestamp)
}

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![0..10_000_u64, 0..=3_153_600_000_000_u64].prop_map(Duration::from_millis)
}

fn requests() -> impl Strategy<Value = Request> {
    (any::<u64>(), any::<u64>(), 0..9_u64, btree_map(words(), any::<u64>(), 0..3))
        .prop_map(|(cpu_milli, memory, gpus, named)| Request { cpu_milli, memory, gpus, named })
}

fn label_rules() -> impl Strategy<Value = LabelRule> {
    let key = words().prop_filter("a key", |key| !key.is_empty()).boxed();
    prop_oneof![
        key.clone().prop_map(LabelRule::Has),
        key.clone().prop_map(LabelRule::Lacks),
        (key.clone(), words()).prop_map(|(key, value)| LabelRule::Is(key, value)),
        (key.clone(), words()).prop_map(|(key, value)| LabelRule::IsNot(key, value)),
        (key.clone(), vec(words(), 1..3)).prop_map(|(key, values)| LabelRule::In(key, values)),
        (key, vec(words(), 1..3)).prop_map(|(key, values)| LabelRule::NotIn(key, values)),
    ]
}

fn retries() -> impl Strategy<Value = RetryPolicy> {
    (any::<u32>(), durations(), any::<u32>(), durations(), any::<u32>(), vec(any::<i32>(), 0..3)).prop_map(
        |(max, delay, factor_milli, cap, jitter_milli, exit_codes)| RetryPolicy {
            max,
            delay,
            factor_milli,
            cap,
            jitter_milli,
            exit_codes,
        },
    )
}

fn afters() -> impl Strategy<Value = After> {
    let on = prop_oneof![Just(On::Success), Just(On::Failure), Just(On::Any)];
    (option::of(1..u64::MAX), some_words(), some_words(), on).prop_map(|(job, job_name, task, on)| After {
        job: job.map(JobId),
        job_name,
        task,
        on,
    })
}

fn arrays() -> impl Strategy<Value = Array> {
    prop_oneof![
        (any::<i64>(), any::<u32>(), any::<i64>()).prop_map(|(first, count, step)| Array::Range { first, count, step }),
        vec(words(), 0..4).prop_map(|items| Array::Items(items.into())),
    ]
}

fn commands() -> impl Strategy<Value = Command> {
    prop_oneof![Just(Command::Empty), vec(words(), 0..4).prop_map(Command::Argv), words().prop_map(Command::Shell),]
}

fn run_as() -> impl Strategy<Value = RunAs> {
    (
        some_words(),
        some_words(),
        option::of(vec(words(), 0..3)),
        option::of(any::<u32>()),
        option::of(any::<i32>()),
        any::<bool>(),
    )
        .prop_map(|(user, group, groups, umask, nice, no_new_privs)| RunAs {
            user,
            group,
            groups,
            umask,
            nice,
            no_new_privs,
        })
}

fn scratches() -> impl Strategy<Value = Scratch> {
    prop_oneof![Just(Scratch::None), Just(Scratch::Private), Just(Scratch::KeepOnFailure)]
}

fn ladders() -> impl Strategy<Value = OomRetries> {
    (any::<u32>(), any::<u32>(), option::of(any::<u64>())).prop_map(|(max, factor_milli, cap)| OomRetries {
        max,
        factor_milli,
        cap,
    })
}

fn io_limits() -> impl Strategy<Value = IoLimits> {
    let some = || option::of(any::<u64>());
    (some(), some(), some(), some()).prop_map(|(read, write, read_ops, write_ops)| IoLimits {
        read,
        write,
        read_ops,
        write_ops,
    })
}

fn containers() -> impl Strategy<Value = Container> {
    let volume = (words(), words(), any::<bool>());
    let volume = volume.prop_map(|(source, target, read_only)| Volume { source, target, read_only });
    (words(), vec(volume, 0..3)).prop_map(|(image, volumes)| Container { image, volumes })
}

fn tasks_specs() -> impl Strategy<Value = TaskSpec> {
    let who = (
        words(),
        prop_oneof![Just(Role::Work), Just(Role::Setup), Just(Role::Teardown)],
        commands(),
        btree_map(words(), words(), 0..3),
        option::of(words()),
        option::of(vec(any::<u8>(), 0..20)),
    );
    let needs = (
        requests(),
        (option::of(words()), option::of(words()), vec(label_rules(), 0..3)),
        any::<i32>(),
        option::of(durations()),
        retries(),
        option::of((0..=TIMESTAMP_MAX.0).prop_map(Timestamp)),
    );
    let rest = (
        vec(afters(), 0..3),
        option::of(arrays()),
        prop_oneof![Just(OnLost::Retry), Just(OnLost::Fail)],
        vec(words(), 0..3),
        durations(),
        option::of(any::<u64>()),
        option::of(durations()),
        (
            any::<bool>(),
            (option::of(any::<u64>()), io_limits()),
            run_as(),
            (scratches(), option::of(any::<u64>()), option::of(any::<u64>()), vec(words(), 0..3)),
            option::of(ladders()),
            option::of(containers()),
        ),
    );
    (who, needs, rest).prop_map(|(who, needs, rest)| {
        let (name, role, command, env, cwd, stdin) = who;
        let (request, (os, arch, labels), priority, timeout, retry, start_at) = needs;
        let (after, array, on_lost, tags, grace, output_limit, max_disconnect, limits) = rest;
        let (cpu_limit, (pids, io), run_as, (scratch, scratch_size, log_rate, mask), oom_retries, container) = limits;
        TaskSpec {
            name,
            role,
            command,
            env,
            cwd,
            stdin,
            request,
            requires: Requires { os, arch, labels },
            priority: Priority(priority),
            timeout,
            retry,
            start_at,
            after,
            array,
            on_lost,
            max_disconnect,
            tags,
            grace,
            output_limit,
            cpu_limit,
            pids,
            io,
            run_as,
            scratch,
            scratch_size,
            log_rate,
            mask,
            oom_retries,
            container,
        }
    })
}

fn job_specs() -> impl Strategy<Value = JobSpec> {
    let maps = || btree_map(words(), words(), 0..3);
    (words(), maps(), maps(), words(), vec(tasks_specs().prop_map(Arc::new), 0..3))
        .prop_map(|(name, labels, metadata, queue, tasks)| JobSpec { name, labels, metadata, queue, tasks })
}

fn ends() -> impl Strategy<Value = End> {
    prop_oneof![
        Just(End::Succeeded),
        any::<i32>().prop_map(End::Exit),
        any::<i32>().prop_map(End::Signal),
        Just(End::Timeout),
        Just(End::Oom),
        Just(End::Lost),
        Just(End::Cancelled),
        Just(End::NotStarted),
        Just(End::KillFailed),
        Just(End::ScratchFull),
    ]
}

fn usages() -> impl Strategy<Value = Option<Usage>> {
    let counts = any::<[u64; 5]>().prop_map(|counts| counts.map(Amount::new));
    option::of((counts, any::<u8>(), any::<Option<bool>>()).prop_map(|(counts, unenforced, has_output)| {
        let [memory_peak, cpu_user_us, cpu_system_us, read_bytes, written_bytes] = counts;
        let unenforced = Unenforced(unenforced);
        Usage { memory_peak, cpu_user_us, cpu_system_us, read_bytes, written_bytes, unenforced, has_output }
    }))
}

fn attempts() -> impl Strategy<Value = Attempt> {
    let end = option::of((ends(), why()));
    (any::<u32>(), any::<u64>(), any::<u64>(), times(), times(), times(), end, usages()).prop_map(
        |(number, token, agent, leased, started, ended, end, usage)| {
            let (end, why) = end.map_or((None, None), |(end, why)| (Some(end), why));
            Attempt { number, token: Token(token), agent: AgentId(agent), leased, started, ended, end, why, usage }
        },
    )
}

fn states() -> impl Strategy<Value = State> {
    prop::sample::select(State::ALL.to_vec())
}

fn tasks() -> impl Strategy<Value = Task> {
    let stopping = prop::sample::select(vec![None, Some(Stopping::Cancel), Some(Stopping::Drain)]);
    let counts = (stopping, any::<u16>(), any::<u16>(), any::<u8>());
    (states(), counts, times(), option::of(attempts()), vec(attempts(), 0..3), why()).prop_map(
        |(state, (stopping, retries, losses, ooms), retry_at, attempt, past, why)| Task {
            state,
            stopping,
            retries,
            losses,
            ooms,
            retry_at,
            attempt,
            past,
            why,
        },
    )
}

fn chunks() -> impl Strategy<Value = Chunk> {
    vec((tasks(), 1..12_usize), 0..8).prop_map(|runs| {
        let mut tasks: Vec<_> = runs.into_iter().flat_map(|(task, n)| vec![task; n]).collect();
        tasks.truncate(64);
        Chunk { tasks }
    })
}

fn offers() -> impl Strategy<Value = Offer> {
    let labels = btree_map(words(), words(), 0..3);
    (words(), words(), words(), labels, requests(), words(), words(), machine_facts().boxed()).prop_map(
        |(name, os, arch, labels, capacity, version, host, facts)| Offer {
            name,
            os,
            arch,
            labels,
            capacity,
            version,
            host,
            unfit: facts.distribution.clone(),
            facts: Box::new(facts),
        },
    )
}

fn machine_facts() -> impl Strategy<Value = Facts> {
    let gpu = (any::<u32>(), words(), words(), any::<u64>());
    let gpu = gpu.prop_map(|(index, name, uuid, memory)| Gpu { index, name, uuid, memory });
    let numbers = (any::<u32>(), any::<u64>(), any::<u64>());
    let enforced = (words(), words(), words()).prop_map(|(what, by, why_not)| Enforced { what, by, why_not });
    (words(), words(), numbers, vec(words(), 0..3), vec(gpu, 0..3), vec(enforced, 0..3)).prop_map(
        |(kernel, distribution, (processors, memory, disk), numa, gpus, enforced)| Facts {
            kernel,
            distribution,
            processors,
            numa,
            memory,
            disk,
            gpus,
            enforced,
        },
    )
}

fn cordons() -> impl Strategy<Value = Cordon> {
    (times(), arcs(), arcs(), any::<bool>(), times()).prop_map(|(at, by, reason, drain, deadline)| Cordon {
        at,
        by,
        reason,
        drain,
        deadline,
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    let limit = || option::of(any::<u64>());
    (limit(), limit(), limit()).prop_map(|(cpu_milli, memory, gpus)| Limits { cpu_milli, memory, gpus })
}

fn results() -> impl Strategy<Value = TaskResult> {
    prop_oneof![
        vec(any::<u8>(), 0..40).prop_map(|json| TaskResult::Inline(json.into())),
        (1..u64::MAX).prop_map(TaskResult::Stored),
    ]
}

fn jobs() -> impl Strategy<Value = Job> {
    (any::<u64>(), job_specs(), times(), arcs(), arcs(), arcs()).prop_map(
        |(id, spec, submitted, key, by, trace_parent)| Job {
            id: JobId(id),
            spec: Arc::new(spec),
            submitted,
            key,
            by,
            trace_parent,
        },
    )
}

fn meta_pieces() -> impl Strategy<Value = (Key, Piece)> {
    (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
        |(token_ceiling, job_floor, agent_floor, restored_below)| {
            (Key::Meta, Piece::Meta(Meta { token_ceiling, job_floor, agent_floor, restored_below }))
        },
    )
}

fn queue_pieces() -> impl Strategy<Value = (Key, Piece)> {
    let name = words().prop_filter("a name", |name| !name.is_empty());
    (name, option::of(any::<u64>()), option::of(any::<u64>()), any::<bool>()).prop_map(
        |(name, max_running, max_waiting, paused)| {
            let key = Key::Queue(name.as_str().into());
            (key, Piece::Queue(Arc::new(Queue { name, max_running, max_waiting, paused })))
        },
    )
}

fn agent_pieces() -> impl Strategy<Value = (Key, Piece)> {
    let wishes = (option::of(cordons().prop_map(Arc::new)), limits()).boxed();
    // In boxes: together they are too much for the stack of a test's thread.
    let offers = offers().boxed();
    (any::<u64>(), arcs(), offers, any::<(bool, bool)>(), times(), times(), wishes).prop_map(
        |(id, uid, offer, (lost, stopped), first_seen, changed, (cordon, limits))| {
            let id = AgentId(id);
            let agent = AgentRecord { id, uid, offer, lost, stopped, first_seen, changed, cordon, limits };
            let AgentId(id) = id;
            (Key::Agent(AgentId(id)), Piece::Agent(Arc::new(agent)))
        },
    )
}

fn cancels() -> impl Strategy<Value = Cancel> {
    (times(), arcs(), arcs(), any::<bool>(), vec(any::<u32>(), 0..4))
        .prop_map(|(at, by, reason, teardown_too, skipped)| Cancel { at, by, reason, teardown_too, skipped })
}

/// Every kind of piece, under a key of its own.
fn pieces() -> impl Strategy<Value = (Key, Piece)> {
    let job = || any::<u64>().prop_map(JobId);
    prop_oneof![
        meta_pieces(),
        queue_pieces(),
        agent_pieces(),
        access::token_pieces(),
        access::audit_pieces(),
        jobs().prop_map(|job| (Key::Job(job.id), Piece::Job(Arc::new(job)))),
        (job(), cancels()).prop_map(|(job, cancel)| (Key::Cancel(job), Piece::Cancel(Arc::new(cancel)))),
        (job(), any::<u32>(), chunks()).prop_map(|(job, n, chunk)| (Key::Chunk(job, n), Piece::Chunk(Arc::new(chunk)))),
        (job(), any::<u32>(), results())
            .prop_map(|(job, n, result)| (Key::Result(TaskId::new(job, n)), Piece::Result(Arc::new(result)))),
    ]
}
