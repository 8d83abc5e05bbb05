//! What the loop says to the controller: each word as soon as there is room for it, and reports together.

use std::{collections::VecDeque, time::Duration};

use muster_common::{
    proto::v1::{self, agent_up::Message},
    wire::link::offer_to_proto,
};
use muster_core::{event::Report, id::AgentId, record::Offer, time::Mono};
use prost::Message as _;
use tracing::{debug, info};

use super::older::report_for;
use crate::link::Up;

/// Bytes of reports in one message, well below the 4 MiB that a gRPC server takes.
const REPORTS_MAX: usize = 1 << 20;
/// While this much work waits here, reports are gathered for a moment: nobody needs them at once, and one message,
/// one commit and one answer for ten of them cost what each would cost alone.
const GATHER_AHEAD: usize = 8;
/// How long reports are gathered at most; far less than the work that is sent ahead lasts.
const GATHER: Duration = Duration::from_millis(10);
/// From this protocol on a controller understands an offer in a running session.
const OFFERS_IN_SESSION: u32 = 3;

/// The stream to the controller while there is one, and what waits for room in it.
#[derive(Default)]
pub(super) struct Upstream {
    up: Option<Up>,
    reports: VecDeque<v1::Report>,
    /// Until when the reports may be gathered.
    gathering: Option<Mono>,
    /// The controller has not heard what the machine offers now.
    is_offer_unsaid: bool,
    /// The controller has not heard that we take nothing new.
    is_draining_unsaid: bool,
}

impl Upstream {
    /// What waited goes again with the new stream, as the supervisor says.
    pub(super) fn open(&mut self, up: Up) {
        self.reports.clear();
        self.up = Some(up);
    }

    pub(super) fn close(&mut self) {
        self.reports.clear();
        self.up = None;
    }

    /// Ends the stream from our side.
    pub(super) fn cut(&mut self) {
        self.reports.clear();
        if let Some(up) = self.up.take() {
            up.cut();
        }
    }

    pub(super) fn into_stream(self) -> Option<Up> {
        self.up
    }

    pub(super) fn attached(&self, agent: AgentId) {
        if let Some(up) = &self.up {
            up.attached(agent);
        }
    }

    /// Says at once who we are, with all that we offer.
    pub(super) fn hello(&mut self, hello: v1::Hello) {
        (self.is_offer_unsaid, self.is_draining_unsaid) = (false, false);
        self.send(Message::Hello(hello));
    }

    /// Says at once that we leave, which is more than that we are about to.
    pub(super) fn goodbye(&mut self) {
        self.is_draining_unsaid = false;
        self.send(Message::Goodbye(v1::Goodbye {}));
    }

    pub(super) fn send(&self, message: Message) {
        if let Some(up) = &self.up
            && !up.send(message)
        {
            // The stream takes nothing: a heartbeat more would be late anyway.
            debug!("the stream to the controller has no room");
        }
    }

    pub(super) fn report(&mut self, report: &Report) {
        if let Some(up) = &self.up {
            self.reports.push_back(report_for(up, report));
        }
    }

    /// To be said with the next [`Upstream::flush`] that finds room for it.
    pub(super) fn offer_changed(&mut self) {
        self.is_offer_unsaid = true;
    }

    /// We stop, which is said as soon as there is room for it: who does not hear of it goes on giving us leases. A new
    /// connection is told by the supervisor.
    pub(super) fn drain(&mut self) {
        self.is_draining_unsaid = true;
    }

    /// When reports have been gathered for long enough.
    pub(super) fn due(&self) -> Option<Mono> {
        self.gathering
    }

    /// Waits until there is room for what waits for some; for ever if nothing does. Cancel safe.
    pub(super) async fn room(&self, is_attached: bool) {
        let waits = (!self.reports.is_empty() && self.gathering.is_none())
            || (self.is_offer_unsaid && is_attached)
            || self.is_draining_unsaid;
        match self.up.as_ref().filter(|_| waits) {
            Some(up) => up.room().await,
            None => std::future::pending().await,
        }
    }

    /// Sends what waits, as far as there is room: of the reports as many in a message as fit. While `waiting` orders wait
    /// here to begin, reports may be gathered.
    pub(super) fn flush(&mut self, now: Mono, offer: &Offer, is_attached: bool, waiting: usize) {
        self.say_draining();
        // Who is not attached says it in the next hello.
        if is_attached {
            self.say_offer(offer);
        }
        if self.may_gather(now, waiting) {
            return;
        }
        let Some(up) = &self.up else { return };
        while !self.reports.is_empty() && up.has_room() {
            let mut size = 0;
            let fit = self.reports.iter().take_while(|report| {
                let before = size;
                size += report.encoded_len();
                before == 0 || size <= REPORTS_MAX
            });
            let fit = fit.count();
            let reports = self.reports.drain(..fit).collect();
            if !up.send(Message::Reports(v1::Reports { reports })) {
                debug!("reports found no room after all; they go again with the next connection");
            }
        }
    }

    fn say_draining(&mut self) {
        match &self.up {
            Some(up) if self.is_draining_unsaid && up.has_room() => {
                self.is_draining_unsaid = !up.send(Message::Draining(v1::Draining {}));
            }
            Some(_) => {}
            None => self.is_draining_unsaid = false,
        }
    }

    /// Where the controller understands that; another is told by a new connection.
    fn say_offer(&mut self, offer: &Offer) {
        let Some(up) = self.up.as_ref().filter(|_| self.is_offer_unsaid) else { return };
        if !up.speaks(OFFERS_IN_SESSION) {
            info!("this controller hears of a new offer by a new connection only");
            self.is_offer_unsaid = false;
            up.cut();
        } else if up.has_room() {
            self.is_offer_unsaid = !up.send(Message::Offer(offer_to_proto(offer)));
        }
    }

    /// Whether reports may wait for more of their kind.
    fn may_gather(&mut self, now: Mono, waiting: usize) -> bool {
        if self.reports.is_empty() || waiting < GATHER_AHEAD {
            self.gathering = None;
            return false;
        }
        let until = *self.gathering.get_or_insert(now.after(GATHER));
        if until <= now {
            self.gathering = None;
        }
        self.gathering.is_some()
    }
}
