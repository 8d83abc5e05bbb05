//! Rules about floods of output: nothing is lost because of one, and what is not kept of it is told, byte by byte.

use super::{
    History, Violation,
    history::{Acked, Attempt, Piece},
};

/// Of a flood that comes when nothing else is broken.
const ALONE: &str = "alone";
/// Each line of a flood: the token and the number of the line, as wide as this.
const LINE: u64 = 32;
/// What was said of an agent in this time after an attempt's end may still have come between its output and the disk.
const SETTLED_US: u64 = 5_000_000;

/// While nothing else is broken, a flood costs no attempt: heartbeats came through it.
pub(super) fn unhurt(history: &History, found: &mut Vec<Violation>) {
    let alone = |acked: &&Acked| acked.log_limit.is_some() && acked.key.starts_with(ALONE);
    for acked in history.acked.iter().filter(alone) {
        for (name, _) in &acked.tasks {
            let of = |attempt: &&Attempt| attempt.key == acked.key && attempt.name == *name;
            let attempts: Vec<_> = history.attempts.iter().filter(of).collect();
            if !matches!(&*attempts, [one] if one.number == 1 && one.code == Some(0)) {
                let how: Vec<_> = attempts.iter().map(|one| (one.number, one.agent.as_str(), one.code)).collect();
                let text = format!("job {}.{name} flooded alone and took more than one attempt: {how:?}", acked.job);
                found.push(Violation { kind: "drowned", text });
            }
        }
    }
}

/// What is kept of an attempt that flooded is within its limit, in its place, and with what was cut it is all.
pub(super) fn whole(history: &History, found: &mut Vec<Violation>) {
    for attempt in &history.attempts {
        let acked = history.acked.iter().find(|acked| acked.job == attempt.job);
        let Some(limit) = acked.and_then(|acked| acked.log_limit) else { continue };
        let of = (attempt.job, attempt.name.clone(), attempt.number);
        let pieces = history.logs.get(&of).map(Vec::as_slice).unwrap_or_default();
        if let Some(wrong) = flaw(attempt, pieces, limit, is_troubled(history, attempt)) {
            let (job, name, number) = (attempt.job, &attempt.name, attempt.number);
            let text = format!("the log of attempt {number} of {job}.{name} on {}: {wrong}", attempt.agent);
            found.push(Violation { kind: "log", text });
        }
    }
}

/// Whether something else was done to its agent: a keeper that was killed cannot know how much it had cut.
fn is_troubled(history: &History, attempt: &Attempt) -> bool {
    let during = attempt.start_us..attempt.last_us + SETTLED_US;
    let mut near = history.faults.iter().filter(|fault| during.contains(&fault.t_us));
    attempt.code.is_none() || near.any(|fault| fault.text.contains(&attempt.agent))
}

/// What is wrong with a log, if anything.
fn flaw(attempt: &Attempt, pieces: &[Piece], limit: u64, is_troubled: bool) -> Option<String> {
    let (mut end, mut kept, mut is_cut) = (0, 0, false);
    for Piece { offset, text, cut, why } in pieces {
        if *offset != end {
            return Some(format!("after byte {end} comes byte {offset}"));
        }
        if *cut > 0 && why.is_empty() {
            return Some(format!("{cut} bytes were cut at byte {offset}, and nobody says why"));
        }
        is_cut |= *cut > 0;
        // Behind a cut whose length is not known nothing stands in its place.
        if !(is_troubled && is_cut) && *text != written(attempt.token, *offset, text.len() as u64) {
            return Some(format!("what stands at byte {offset} was not written there"));
        }
        (end, kept) = (end + text.len() as u64 + cut, kept + text.len() as u64);
    }
    if kept > limit {
        return Some(format!("{kept} bytes are kept of at most {limit}"));
    }
    let wrote = attempt.wrote.filter(|wrote| !is_troubled && *wrote != end)?;
    Some(format!("it wrote {wrote} bytes, and {end} are kept or told to be cut"))
}

/// What a flood has written there.
fn written(token: u64, offset: u64, length: u64) -> String {
    let (first, last) = (offset / LINE, (offset + length).div_ceil(LINE));
    let lines: String = (first..last).map(|n| format!("{token:>15} {n:>15}\n")).collect();
    let skipped = usize::try_from(offset % LINE).unwrap_or(0);
    lines.chars().skip(skipped).take(usize::try_from(length).unwrap_or(usize::MAX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{check, history::Fault};

    const PEOPLE: &str = r#"{"key":"alone-flood","job":1,"began_us":1,"acked_us":5,"on_lost":"retry","log_limit":96,"tasks":[{"name":"f0","after":[]}]}"#;
    const WITNESS: &str = "\
start 10 alone-flood f0 1 1 77 x 500
beat 20 alone-flood f0 1 1 77 x 500
wrote 30 alone-flood f0 1 1 77 x 500 320
end 31 alone-flood f0 1 1 77 x 500 0
";

    /// Two lines are kept, seven are cut, and the last one is kept.
    fn pieces() -> Vec<Piece> {
        let kept = |n: u64, lines: u64| Piece {
            offset: n * LINE,
            text: (n..n + lines).map(|n| format!("{:>15} {n:>15}\n", 77)).collect(),
            cut: 0,
            why: String::new(),
        };
        let cut = Piece { offset: 64, text: String::new(), cut: 224, why: "too much".into() };
        vec![kept(0, 2), cut, kept(9, 1)]
    }

    fn found(witness: &str, change: impl FnOnce(&mut History, &mut Vec<Piece>)) -> Vec<&'static str> {
        let (mut history, mut pieces) = (History::default(), pieces());
        history.people(PEOPLE).expect("it is right");
        history.witness(witness);
        history.finals = [(1, "succeeded".to_owned())].into();
        history.capacity = [("x".to_owned(), 2_000), ("y".to_owned(), 2_000)].into();
        change(&mut history, &mut pieces);
        history.logs.insert((1, "f0".to_owned(), 1), pieces);
        check(&history).violations.iter().map(|violation| violation.kind).collect()
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn a_flood_that_is_told_of_byte_by_byte_is_not_accused() {
        assert_eq!(found(WITNESS, |_, _| {}), NONE);
    }

    #[test]
    fn an_attempt_that_a_flood_alone_cost_is_found() {
        let again = "start 40 alone-flood f0 1 2 78 y 500\nwrote 50 alone-flood f0 1 2 78 y 500 0\nend 51 alone-flood f0 1 2 78 y 500 0\n";
        let lost: String = WITNESS.lines().take(2).map(|line| format!("{line}\n")).collect();
        assert_eq!(found(&format!("{lost}{again}"), |_, _| {}), ["drowned"]);
        // Amid other faults that is nothing.
        let amid = |text: &str| text.replace("alone-flood", "flood-7");
        let kinds = found(&amid(&format!("{lost}{again}")), |history, _| {
            history.acked.clear();
            history.people(&amid(PEOPLE)).expect("it is right");
        });
        assert_eq!(kinds, NONE);
    }

    #[test]
    fn a_gap_that_nobody_tells_of_is_found() {
        assert_eq!(found(WITNESS, |_, pieces| drop(pieces.remove(1))), ["log"]);
        assert_eq!(found(WITNESS, |_, pieces| pieces[1].cut -= 1), ["log"]);
        assert_eq!(found(WITNESS, |_, pieces| drop(pieces.pop())), ["log"], "the end is missing");
        assert_eq!(found(WITNESS, |_, pieces| pieces.clear()), ["log"], "all is missing");
        assert_eq!(found(WITNESS, |_, pieces| pieces[1].why.clear()), ["log"], "nobody says why");
    }

    #[test]
    fn output_of_another_place_or_attempt_is_found() {
        assert_eq!(found(WITNESS, |_, pieces| pieces[2].text = pieces[2].text.replace('9', "8")), ["log"]);
        assert_eq!(found(WITNESS, |_, pieces| pieces[0].text = pieces[0].text.replace("77", "76")), ["log"]);
    }

    #[test]
    fn more_than_its_limit_is_found() {
        assert_eq!(found(WITNESS, |history, _| history.acked[0].log_limit = Some(95)), ["log"]);
    }

    #[test]
    fn who_was_hurt_need_not_know_how_much_it_cut_but_has_no_gap() {
        let hurt = |history: &mut History| {
            let text = "the keeper of x killed".to_owned();
            history.faults.push(Fault { id: "X3".into(), t_us: 25, text });
        };
        let shorter = |pieces: &mut Vec<Piece>| {
            pieces[1].cut -= 10;
            pieces[2].offset -= 10;
        };
        assert_eq!(found(WITNESS, |_, pieces| shorter(pieces)), ["log"]);
        assert_eq!(found(WITNESS, |history, pieces| (hurt(history), shorter(pieces)).1), NONE);
        assert_eq!(found(WITNESS, |history, pieces| (hurt(history), drop(pieces.remove(1))).1), ["log"]);
    }
}
