//! Why work that waits does so, and what would unblock it.

use muster_common::proto::v1;
use serde::Serialize;

use super::{some, task};
use crate::output::{
    Human, Page,
    style::{self, Look},
    table::plain,
};

/// One answer that some tasks share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Explanation {
    subject: String,
    tasks: u64,
    state: &'static str,
    reasons: Vec<Reason>,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Reason {
    code: String,
    text: String,
    unblock: Option<String>,
    agent: Option<String>,
}

/// All answers.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Explanations {
    pub(crate) explanations: Vec<Explanation>,
    /// Tasks of which nothing is told, for there would be too much.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) untold: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What to do about tasks of which nothing is told; none: all is told.
pub(crate) fn more(untold: u64) -> Option<String> {
    (untold > 0).then(|| format!("and {untold} more tasks: ask about some of them, like `ctl explain JOB.TASK`"))
}

impl Explanations {
    /// All of an answer.
    pub(crate) fn of(reply: v1::ExplainReply) -> Self {
        let reason = |view: v1::ReasonView| Reason {
            code: view.code,
            text: view.text,
            unblock: some(&view.unblock),
            agent: some(&view.agent),
        };
        let one = |view: v1::Explanation| Explanation {
            state: task::state_word(view.state),
            subject: view.subject,
            tasks: view.tasks,
            reasons: view.reasons.into_iter().map(reason).collect(),
        };
        Self { explanations: reply.explanations.into_iter().map(one).collect(), untold: reply.untold }
    }
}

impl Human for Explanations {
    fn human(&self, page: &Page) -> String {
        if self.explanations.is_empty() {
            return "nothing waits\n".to_owned();
        }
        let mut out = String::new();
        for one in &self.explanations {
            let many = if one.tasks > 1 { format!(" ({} tasks)", one.tasks) } else { String::new() };
            let state = page.paint(style::of_state(one.state), one.state);
            out.push_str(&format!("{}{many} {state}\n", page.paint(Look::Head, &one.subject)));
            for reason in &one.reasons {
                let unnamed = reason.agent.as_ref().filter(|agent| !reason.text.contains(agent.as_str()));
                let agent = unnamed.map(|agent| format!("agent {agent}: ")).unwrap_or_default();
                let code = page.paint(Look::Dim, &format!("[{}]", reason.code));
                out.push_str(&format!("  - {}{} {code}\n", plain(&agent), plain(&reason.text)));
                if let Some(step) = &reason.unblock {
                    out.push_str(&format!("    {} {}\n", page.paint(Look::Good, "unblocks:"), plain(step)));
                }
            }
        }
        out.extend(more(self.untold).map(|text| text + "\n"));
        out
    }
}
