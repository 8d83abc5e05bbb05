//! D1: a task starts only when its dependencies allow.

use muster_core::{
    id::JobId,
    spec::{After, Array, On, Role, TaskSpec},
    state::{End, State},
};

use crate::kit::{Kit, array, cpus, job, task};

pub(crate) fn after(name: &str, on: On) -> After {
    After { job: None, job_name: None, task: Some(name.to_owned()), on }
}

fn then(name: &str, sources: &[(&str, On)]) -> TaskSpec {
    TaskSpec { after: sources.iter().map(|(source, on)| after(source, *on)).collect(), ..task(name) }
}

#[test]
fn a_diamond_runs_in_order() {
    let mut kit = Kit::new();
    let host = kit.host(8);
    let ok = On::Success;
    let job = kit.submit(job([
        task("a"),
        then("b", &[("a", ok)]),
        then("c", &[("a", ok)]),
        then("d", &[("b", ok), ("c", ok)]),
    ]));
    assert_eq!(kit.states(job), [State::Queued, State::Waiting, State::Waiting, State::Waiting]);
    assert_eq!(kit.codes(job, 3), ["waiting-for", "waiting-for"]);
    assert_eq!(kit.run_all(host), [0, 1, 2, 3]);
    assert_eq!(kit.job_state(job), "succeeded");
}

#[test]
fn a_dependency_on_an_array_waits_for_all_of_it() {
    let mut kit = Kit::new();
    let host = kit.host(2);
    let job = kit.submit(job([array("scan", 3), then("merge", &[("scan", On::Success)])]));
    let first = kit.round();
    assert_eq!(first.len(), 2);
    first.iter().for_each(|lease| kit.end(host, lease, End::Succeeded));
    assert_eq!(kit.state(job, 3), State::Waiting);
    let last = kit.round();
    assert_eq!(last.len(), 1);
    kit.end(host, &last[0], End::Succeeded);
    assert_eq!(kit.state(job, 3), State::Queued);
}

#[test]
fn each_end_lets_start_or_skips_as_the_dependency_says() {
    // (how the source ends, on, what becomes of the dependant)
    let table = [
        (End::Succeeded, On::Success, State::Queued),
        (End::Succeeded, On::Failure, State::Skipped),
        (End::Succeeded, On::Any, State::Queued),
        (End::Exit(1), On::Success, State::Skipped),
        (End::Exit(1), On::Failure, State::Queued),
        (End::Exit(1), On::Any, State::Queued),
        (End::Timeout, On::Success, State::Skipped),
        (End::NotStarted, On::Failure, State::Queued),
    ];
    for (end, on, expected) in table {
        let mut kit = Kit::new();
        let host = kit.host(1);
        let job = kit.submit(job([task("a"), then("b", &[("a", on)])]));
        let lease = kit.round().remove(0);
        kit.end(host, &lease, end);
        assert_eq!(kit.state(job, 1), expected, "{end:?}, {on:?}");
    }
}

#[test]
fn a_skip_goes_on_to_everything_behind_it() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([
        task("a"),
        then("b", &[("a", On::Success)]),
        then("c", &[("b", On::Success)]),
        then("d", &[("c", On::Any)]),
    ]));
    let lease = kit.round().remove(0);
    kit.end(host, &lease, End::Exit(1));
    assert_eq!(kit.states(job), [State::Failed, State::Skipped, State::Skipped, State::Queued]);
    assert_eq!(kit.codes(job, 1), ["skipped"]);
}

#[test]
fn setup_comes_first_and_teardown_last_whatever_happened() {
    for end in [End::Succeeded, End::Exit(3)] {
        let mut kit = Kit::new();
        let host = kit.host(4);
        let setup = TaskSpec { role: Role::Setup, ..task("make") };
        let teardown = TaskSpec { role: Role::Teardown, ..task("clean") };
        let job = kit.submit(job([teardown, task("work"), setup]));
        assert_eq!(kit.states(job), [State::Waiting, State::Waiting, State::Queued]);
        assert_eq!(kit.codes(job, 0), ["teardown"]);
        let lease = kit.round().remove(0);
        kit.end(host, &lease, end);
        let work = if end == End::Succeeded { State::Queued } else { State::Skipped };
        assert_eq!(kit.state(job, 1), work);
        assert_eq!(kit.run_all(host).last(), Some(&0));
        assert_eq!(kit.job_state(job), if end == End::Succeeded { "succeeded" } else { "failed" });
    }
}

#[test]
fn a_job_may_wait_for_another_one_or_for_a_task_of_it() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let first = kit.submit(job([task("a"), task("b")]));
    let whole = After { job: Some(first), job_name: None, task: None, on: On::Success };
    let part = After { task: Some("a".to_owned()), ..whole.clone() };
    let second =
        kit.submit(job([TaskSpec { after: vec![whole], ..task("x") }, TaskSpec { after: vec![part], ..task("y") }]));
    let lease = kit.round().remove(0);
    kit.end(host, &lease, End::Succeeded);
    assert_eq!(kit.states(second), [State::Waiting, State::Queued]);
    kit.run_all(host);
    assert_eq!(kit.job_state(second), "succeeded");
}

#[test]
fn a_job_of_which_nothing_was_done_is_skipped_and_one_of_which_a_part_was_is_not() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let source = kit.submit(job([task("a")]));
    let failure = |on| After { job: Some(source), job_name: None, task: None, on };
    let waits = |name: &str, on| TaskSpec { after: vec![failure(on)], ..task(name) };
    let nothing = kit.submit(job([waits("x", On::Success), then("y", &[("x", On::Success)])]));
    let a_part = kit.submit(job([waits("x", On::Success), waits("y", On::Failure)]));
    let lease = kit.round().remove(0);
    kit.end(host, &lease, End::Exit(1));
    assert_eq!(kit.states(nothing), [State::Skipped, State::Skipped]);
    assert_eq!((kit.job_state(nothing), kit.job_state(a_part)), ("skipped", "queued"));
    kit.run_all(host);
    assert_eq!(kit.states(a_part), [State::Skipped, State::Succeeded]);
    assert_eq!((kit.job_state(nothing), kit.job_state(a_part)), ("skipped", "succeeded"));
}

#[test]
fn a_job_that_waits_for_an_unknown_job_is_refused_with_its_place() {
    let mut kit = Kit::new();
    let after = After { job: Some(JobId(9)), job_name: None, task: None, on: On::Any };
    let refused = kit.cluster.handle(
        kit.now,
        muster_core::event::Event::Submit(Kit::submission(job([TaskSpec { after: vec![after], ..task("x") }]))),
    );
    let text = format!("{:?}", refused.1.expect_err("job 9 is unknown"));
    assert!(text.contains("tasks[0].after[0]") && text.contains("job 9 does not exist"), "{text}");
    assert!(refused.0.changes.is_empty());
}

#[test]
fn a_fan_in_of_ten_thousand_is_quick_to_tell() {
    let mut kit = Kit::new();
    kit.attach("one", cpus(0), &[]);
    let empty = |name: String| TaskSpec {
        request: cpus(0),
        command: muster_core::spec::Command::Empty,
        name,
        ..TaskSpec::default()
    };
    let mut tasks: Vec<TaskSpec> = (0..10_000).map(|n| empty(format!("t{n}"))).collect();
    let names: Vec<String> = tasks.iter().map(|task| task.name.clone()).collect();
    let mut merge = empty("merge".to_owned());
    merge.after = names.iter().map(|name| after(name, On::Success)).collect();
    tasks.push(merge);
    let (step, answer) = kit.cluster.handle(kit.now, muster_core::event::Event::Submit(Kit::submission(job(tasks))));
    assert!(answer.is_ok() && !step.changes.is_empty());
}

#[test]
fn results_make_inputs_of_what_comes_after() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    kit.submit(job([task("a"), then("b", &[("a", On::Success)]), task("c")]));
    let lease = kit.round().remove(0);
    let result = muster_core::record::TaskResult::Inline(b"1".as_slice().into());
    kit.end_with(host, &lease, End::Succeeded, Some(result));
    let next = kit.round();
    let b = next.iter().find(|lease| lease.task.index == 1).expect("b is leased");
    assert!(b.has_inputs);
}

#[test]
fn array_elements_are_counted_as_the_user_counts_them() {
    let spec = TaskSpec { array: Some(Array::Range { first: 10, count: 3, step: 5 }), ..task("a") };
    assert_eq!(
        (0..4).map(|n| spec.element(n).map(|(index, _)| index)).take(3).collect::<Vec<_>>(),
        [Some(10), Some(15), Some(20)]
    );
    assert_eq!([spec.offset_of(15), spec.offset_of(16), spec.offset_of(25)], [Some(1), None, None]);
}
