//! Orders that begin by themselves in the place of an attempt that ended: once, in order, or not at all.

use muster_agent::exec::ExecEvent;
use muster_core::{id::Token, resources::Request, spec::TaskSpec, state::End, time::Mono};

use crate::bench::{Bench, argv, shell, wait_for};

/// Every end, in order, with what was begun in its place.
async fn ends(bench: &mut Bench, count: usize) -> Vec<(Token, End, Option<Token>)> {
    let mut ends = Vec::new();
    while ends.len() < count {
        if let ExecEvent::Ended { token, end, next, .. } = bench.event().await {
            ends.push((token, end, next));
        }
    }
    ends
}

/// A short task whose end is seen by the thread that started it, however busy the machine: it is repeated until one is.
async fn relayed(bench: &mut Bench, offered: Token) -> Token {
    loop {
        let first = bench.start(argv(&["/bin/true"]));
        if let [(token, End::Succeeded, next)] = ends(bench, 1).await[..] {
            assert_eq!(token, first);
            if next.is_some() {
                assert_eq!(next, Some(offered));
                return first;
            }
        }
    }
}

#[tokio::test]
async fn an_offer_begins_where_a_short_task_ended_and_the_next_after_it() {
    let mut bench = Bench::new().await;
    let offered: Vec<_> = (0..3).map(|_| bench.offer(argv(&["/bin/true"]))).collect();
    let failing = bench.offer(shell("exit 3"));
    relayed(&mut bench, offered[0]).await;
    let mut order = vec![offered[0]];
    loop {
        let (token, end, next) = ends(&mut bench, 1).await[0];
        if token == failing {
            assert_eq!(end, End::Exit(3));
            break;
        }
        assert_eq!(end, End::Succeeded);
        match next {
            Some(next) => order.push(next),
            // The machine was busy and nobody saw the end at once: another one has to.
            None if order.len() < 4 => {
                let wanted = if order.len() < 3 { offered[order.len()] } else { failing };
                relayed(&mut bench, wanted).await;
                order.push(wanted);
            }
            None => {}
        }
    }
    assert_eq!(order, [offered[0], offered[1], offered[2], failing], "in the order in which they were offered");
}

#[tokio::test]
async fn an_offer_that_was_taken_back_never_begins() {
    let mut bench = Bench::new().await;
    let mark = bench.dir.join("mark");
    let touch = |bench: &mut Bench| bench.offer(argv(&["/bin/touch", mark.to_str().expect("text")]));
    let offered = touch(&mut bench);
    bench.exec.withdraw(offered);
    assert_eq!(bench.event().await, ExecEvent::Withdrawn { token: offered });
    bench.exec.withdraw(offered);
    bench.exec.claim(offered);
    for _ in 0..10 {
        assert_eq!(bench.run(argv(&["/bin/true"])).await.end, End::Succeeded);
    }
    assert!(!mark.exists());
    // Claimed it begins at once, and once.
    let claimed = touch(&mut bench);
    bench.exec.claim(claimed);
    bench.exec.claim(claimed);
    bench.exec.withdraw(claimed);
    let (token, end, _) = ends(&mut bench, 1).await[0];
    assert_eq!((token, end), (claimed, End::Succeeded));
    assert!(mark.exists());
    assert_eq!(bench.run(argv(&["/bin/true"])).await.end, End::Succeeded, "nothing else was told");
}

#[tokio::test]
async fn an_offer_that_asks_for_other_room_or_is_past_its_time_does_not_begin() {
    let mut bench = Bench::new().await;
    let large = Request { cpu_milli: 2000, ..Request::default() };
    let other = bench.offer(TaskSpec { request: large, ..argv(&["/bin/true"]) });
    for _ in 0..10 {
        bench.start(argv(&["/bin/true"]));
        assert_eq!(ends(&mut bench, 1).await[0].2, None);
    }
    bench.exec.withdraw(other);
    assert_eq!(bench.event().await, ExecEvent::Withdrawn { token: other });
    let late = bench.offer_until(argv(&["/bin/true"]), Mono(0));
    for _ in 0..10 {
        bench.start(argv(&["/bin/true"]));
        assert_eq!(ends(&mut bench, 1).await[0].2, None, "its lease may be another's by now (A1)");
    }
    bench.exec.withdraw(late);
    assert_eq!(bench.event().await, ExecEvent::Withdrawn { token: late });
}

#[tokio::test]
async fn what_began_in_place_is_killed_like_any_other() {
    let mut bench = Bench::new().await;
    let mark = bench.dir.join("mark");
    let text = format!("echo here > {}; exec sleep 1000", mark.display());
    let offered = bench.offer(shell(&text));
    relayed(&mut bench, offered).await;
    wait_for("it to run", || std::fs::read_to_string(&mark).ok().filter(|text| text.ends_with('\n'))).await;
    bench.exec.kill(offered, muster_agent::exec::KillReason::Cancelled, std::time::Duration::ZERO);
    let (token, end, _) = ends(&mut bench, 1).await[0];
    assert_eq!((token, end), (offered, End::Cancelled));
}
