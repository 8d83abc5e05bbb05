//! From the call that hands a job in to the first instruction of its process, on an idle system.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

use crate::{
    aid,
    figure::{Figures, Target, share},
    muster::{Muster, stamp},
};

const SUBMISSIONS: usize = 500;
const WARM: usize = 20;

/// All figures of this file.
pub(crate) async fn measure(figures: &mut Figures) {
    if figures.wants(&["submit-to-start-p50", "submit-to-start-p99"]) {
        let outcome = submit_to_start(figures).await;
        figures.outcome("submit-to-start", outcome);
    }
}

async fn submit_to_start(figures: &mut Figures) -> Result<()> {
    let mut muster = Muster::start().await?;
    let program = aid::stamp(muster.system.folder())?;
    let mut times_ms = Vec::new();
    for number in 0..WARM + SUBMISSIONS {
        let file = muster.system.folder().join(format!("stamp-{number}"));
        let spec = stamp(&program, &file);
        let before = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let job = muster.submit(spec).await?;
        muster.succeeded(job, 1).await?;
        let stamped: u128 = fs::read_to_string(&file)?.trim().parse().context("a stamp is a number")?;
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of one run")]
        let ms = stamped.saturating_sub(before) as f64 / 1e6;
        times_ms.push(ms);
    }
    let times_ms = &mut times_ms[WARM..];
    figures.add("submit-to-start-p50", share(times_ms, 0.5), "ms", Target::AtMost(3.0));
    figures.add("submit-to-start-p99", share(times_ms, 0.99), "ms", Target::AtMost(10.0));
    Ok(())
}
