//! Bad histories made by hand: every kind of violation is found, and a good one is not accused.

use super::*;

const PEOPLE: &str = r#"{"key":"a","job":1,"began_us":1,"acked_us":5,"on_lost":"retry","tasks":[{"name":"top","after":[]},{"name":"end","after":["top"]}]}
{"key":"b","job":2,"began_us":1,"acked_us":6,"on_lost":"fail","tasks":[{"name":"one","after":[]}]}
"#;

const WITNESS: &str = "\
start 10 a top 1 1 100 x 1000
beat 20 a top 1 1 100 x 1000
start 40 a top 1 2 103 y 1000
end 60 a top 1 2 103 y 1000 0
start 70 a end 1 1 104 x 1000
start 71 b one 2 1 105 x 1000
end 80 a end 1 1 104 x 1000 0
end 81 b one 2 1 105 x 1000 0
";

fn history(people: &str, witness: &str) -> History {
    let mut history = History::default();
    history.people(people).expect("it is right");
    history.witness(witness);
    history
        .polls("{\"began_us\":50,\"ended_us\":55,\"jobs\":{\"1\":\"running\",\"2\":\"queued\"}}\n")
        .expect("it is right");
    history.finals = [(1, "succeeded".to_owned()), (2, "succeeded".to_owned())].into();
    history.capacity = [("x".to_owned(), 2_000), ("y".to_owned(), 1_000)].into();
    history
}

fn kinds(history: &History) -> Vec<&'static str> {
    let mut kinds: Vec<_> = check(history).violations.iter().map(|violation| violation.kind).collect();
    kinds.dedup();
    kinds
}

fn kinds_of(witness: &str) -> Vec<&'static str> {
    kinds(&history(PEOPLE, witness))
}

#[test]
fn a_good_history_is_not_accused() {
    let verdict = check(&history(PEOPLE, WITNESS));
    assert_eq!(verdict.violations, []);
    assert_eq!((verdict.jobs, verdict.attempts, verdict.polls), (2, 4, 1));
}

#[test]
fn two_attempts_at_one_time_are_found() {
    let late = WITNESS.replace("start 70 a end", "beat 41 a top 1 1 100 x 1000\nstart 70 a end");
    assert_eq!(kinds_of(&late), ["overlap"]);
    let locked = WITNESS.replace("start 40", "overlap 39 a top 1 2 103 y 1000\nstart 40");
    assert_eq!(kinds_of(&locked), ["overlap"]);
    // The first outlives the second, and is still there when the third begins.
    let third =
        "start 10 b one 2 1 1 x 1\nstart 20 b one 2 2 2 x 1\nstart 30 b one 2 3 3 x 1\nbeat 35 b one 2 1 1 x 1\n";
    let found = check(&history(PEOPLE, third)).violations;
    assert!(found.iter().any(|found| found.text.contains("after attempt 3 began")), "{found:?}");
}

#[test]
fn numbers_that_do_not_grow_are_found() {
    assert_eq!(kinds_of(&WITNESS.replace("1 2 103", "1 1 103")), ["backwards"]);
    assert_eq!(kinds_of(&WITNESS.replace("1 2 103", "1 2 99")), ["backwards"]);
}

#[test]
fn a_second_start_of_what_may_run_once_is_found() {
    assert_eq!(kinds_of(&format!("{WITNESS}start 90 b one 2 2 106 x 1\nend 91 b one 2 2 106 x 1 0\n")), ["twice"]);
}

#[test]
fn a_start_before_its_dependency_ended_is_found() {
    assert_eq!(kinds_of(&WITNESS.replace("start 70", "start 59")), ["order"]);
    assert_eq!(kinds_of(&WITNESS.replace("y 1000 0", "y 1000 3")), ["order", "untrue"]);
}

#[test]
fn more_than_an_agent_offers_is_found() {
    assert_eq!(kinds_of(&WITNESS.replace("104 x 1000", "104 x 1001")), ["capacity"]);
    assert_eq!(kinds_of(&WITNESS.replace("105 x", "105 z")), ["capacity"]);
    // One that ends when another begins makes room for it.
    let neighbours = "start 10 b one 2 1 1 y 1000\nend 70 b one 2 1 1 y 1000 0\n";
    let good = format!("{}{neighbours}", WITNESS.lines().take(4).map(|line| format!("{line}\n")).collect::<String>());
    assert!(kinds_of(&good).contains(&"capacity"), "y has room for one");
    let after = good.replace("start 10 b", "start 60 b");
    assert!(!kinds_of(&after).contains(&"capacity"), "{:?}", kinds_of(&after));
}

#[test]
fn a_lost_job_is_found() {
    let mut gone = history(PEOPLE, WITNESS);
    gone.finals.remove(&2);
    assert_eq!(kinds(&gone), ["lost"]);
    let mut stuck = history(PEOPLE, WITNESS);
    stuck.finals.insert(1, "running".to_owned());
    assert_eq!(kinds(&stuck), ["lost"]);
    let mut failed = history(PEOPLE, WITNESS);
    failed.finals.insert(1, "failed".to_owned());
    assert_eq!(kinds(&failed), ["lost"]);
    // What may run once may fail, when its machine is lost.
    failed.finals = [(1, "succeeded".to_owned()), (2, "failed".to_owned())].into();
    assert_eq!(kinds(&failed), Vec::<&str>::new());
    let mut unlisted = history(PEOPLE, WITNESS);
    unlisted.polls[0].jobs.remove(&2);
    assert_eq!(kinds(&unlisted), ["lost"]);
}

#[test]
fn a_final_state_that_changed_is_found() {
    let poll =
        |state| format!("{{\"began_us\":90,\"ended_us\":95,\"jobs\":{{\"1\":\"{state}\",\"2\":\"succeeded\"}}}}\n");
    let mut changed = history(PEOPLE, WITNESS);
    changed.polls(&poll("failed")).expect("it is right");
    assert_eq!(kinds(&changed), ["final-changed"]);
    let mut back = history(PEOPLE, WITNESS);
    back.polls(&poll("succeeded")).and_then(|()| back.polls(&poll("running"))).expect("it is right");
    assert_eq!(kinds(&back), ["final-changed"]);
    let late = format!("{WITNESS}start 99 a end 1 2 110 x 1\nend 100 a end 1 2 110 x 1 0\n");
    let mut again = history(PEOPLE, &late);
    again.polls(&poll("succeeded")).expect("it is right");
    assert_eq!(kinds(&again), ["final-changed"]);
}

#[test]
fn two_jobs_of_one_key_are_found() {
    assert_eq!(kinds_of(&WITNESS.replace("start 71 b one 2", "start 71 b one 3")), ["key"]);
    assert_eq!(kinds(&history(&PEOPLE.replace("\"job\":2", "\"job\":1"), WITNESS)), ["key"]);
}

#[test]
fn a_success_without_an_end_is_found() {
    let cut = WITNESS.replace("end 81 b one 2 1 105 x 1000 0\n", "");
    assert_eq!(kinds_of(&cut), ["untrue"]);
    assert_eq!(kinds_of(&cut.replace("start 71 b one 2 1 105 x 1000\n", "")), ["untrue"]);
}

#[test]
fn a_line_that_no_task_writes_is_found() {
    assert_eq!(kinds_of(&format!("{WITNESS}beat 99 a to")), ["witness"]);
    assert_eq!(kinds_of(&format!("{WITNESS}beat 99 q top 1 1 7 x 1\n")), ["witness"]);
    assert_eq!(
        kinds_of(&format!("{WITNESS}start 99 b one 2 1 105 x 1\n")),
        ["backwards", "twice", "untrue", "witness"]
    );
}

#[test]
fn a_program_that_fell_is_found() {
    let mut fallen = history(PEOPLE, WITNESS);
    fallen.faults.push(history::Fault { id: "fallen".into(), t_us: 1, text: "ctrl0 ended: signal 6".into() });
    assert_eq!(kinds(&fallen), ["fallen"]);
    fallen.faults[0].id = "herd".into();
    assert_eq!(kinds(&fallen), ["herd"]);
}

#[test]
fn a_hand_over_lasts_until_later_work_has_started() {
    let mut killed = history(&PEOPLE.replacen("\"began_us\":1", "\"began_us\":9", 1), WITNESS);
    killed.faults.push(history::Fault { id: "X1".into(), t_us: 4, text: String::new() });
    assert_eq!(check(&killed).handovers_us, [6]);
}

#[test]
fn the_checker_names_nothing_of_the_product() {
    for text in [
        include_str!("mod.rs"),
        include_str!("floods.rs"),
        include_str!("history.rs"),
        include_str!("lives.rs"),
        include_str!("rules.rs"),
    ] {
        assert!(!text.contains("muster_"), "it must be able to contradict the product");
    }
}

const STOPPED: &str = r#"{"key":"a","job":1,"began_us":1,"acked_us":5,"on_lost":"retry","must":"oom","tasks":[{"name":"hog","after":[]}]}
"#;

fn stopped(state: &str, kinds_of: &[&str], witness: &str) -> Vec<&'static str> {
    let mut history = history(STOPPED, witness);
    history.polls("{\"began_us\":40,\"ended_us\":45,\"jobs\":{\"1\":\"failed\"}}\n").expect("it is right");
    history.polls.remove(0);
    history.finals = [(1, state.to_owned())].into();
    let attempts: Vec<_> = kinds_of.iter().map(|kind| format!("{{\"end\":{{\"kind\":\"{kind}\"}}}}")).collect();
    let shown = format!("{{\"job\":{{\"id\":1}},\"tasks\":[{{\"attempts\":[{}]}}]}}", attempts.join(","));
    history.ends = history::ends(&shown).expect("it is right");
    kinds(&history)
}

#[test]
fn what_must_be_stopped_is_stopped_for_the_right_reason() {
    let witness = "start 10 a hog 1 1 100 x 500\nbeat 20 a hog 1 1 100 x 500\n";
    assert_eq!(stopped("failed", &["oom"], witness), [""; 0]);
    assert_eq!(stopped("failed", &["lost", "lost", "oom"], witness), [""; 0]);
    assert_eq!(stopped("failed", &["signal"], witness), ["blame"]);
    assert_eq!(stopped("failed", &["oom", "oom"], witness), ["blame"]);
    assert_eq!(stopped("failed", &["exit", "oom"], witness), ["blame"]);
    assert!(stopped("succeeded", &["succeeded"], witness).contains(&"lost"));
}

#[test]
fn what_lives_after_its_job_is_found() {
    let witness = "start 10 a hog 1 1 100 x 500\nbeat 46 a hog 1 1 100 x 500\n";
    assert_eq!(stopped("failed", &["oom"], witness), ["survivor"]);
    assert_eq!(stopped("failed", &["oom"], &witness.replace("46", "44")), [""; 0]);
}
