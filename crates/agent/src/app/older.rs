//! What a controller of an older protocol would not understand, said in words that it knows.

use muster_common::{proto::v1, wire::link::report_to_proto};
use muster_core::event::Report;

use crate::link::Up;

/// From this protocol on a controller knows that an attempt ended since its scratch folder was full. An older one reads no
/// report that comes with such an end, and so acknowledges none any more.
const SCRATCH_FULL: u32 = 3;
/// Of every Unix.
const SIGKILL: i32 = 9;

/// A report for whoever is at the other end. That of a full scratch folder says to an older one how it looks from outside:
/// we killed it. The reason tells why.
pub(super) fn report_for(up: &Up, report: &Report) -> v1::Report {
    let mut report = report_to_proto(report);
    if let Some(v1::report::What::Ended(v1::Ended { end: Some(end), .. })) = &mut report.what
        && end.kind() == v1::EndKind::ScratchFull
        && !up.speaks(SCRATCH_FULL)
    {
        end.set_kind(v1::EndKind::Signal);
        end.code = SIGKILL;
    }
    report
}
