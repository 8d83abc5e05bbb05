//! Every call there is, and what its caller must be. A call that is not here is refused.

use muster_core::access::Role;

/// What must be true of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::grpc) enum Needs {
    /// Nothing: whoever asks this cannot be known yet, and the call itself looks closer.
    Nothing,
    /// This role, or one that may do more.
    Role(Role),
}

/// Whether refusing it is worth a record even where the role is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::grpc) enum Kind {
    /// It only looks.
    Sees,
    /// It changes something.
    Changes,
}

/// One call.
#[derive(Debug)]
pub(in crate::grpc) struct Rule {
    /// `/package.Service/Method`
    pub(in crate::grpc) path: &'static str,
    pub(in crate::grpc) needs: Needs,
    pub(in crate::grpc) kind: Kind,
    /// What it does, for people and for the audit log.
    pub(in crate::grpc) action: &'static str,
}

const fn sees(path: &'static str, role: Role, action: &'static str) -> Rule {
    Rule { path, needs: Needs::Role(role), kind: Kind::Sees, action }
}

const fn changes(path: &'static str, role: Role, action: &'static str) -> Rule {
    Rule { path, needs: Needs::Role(role), kind: Kind::Changes, action }
}

use Role::{Admin, Agent, Operator, Viewer};

const fn open(path: &'static str, action: &'static str) -> Rule {
    Rule { path, needs: Needs::Nothing, kind: Kind::Sees, action }
}

pub(in crate::grpc) const TABLE: &[Rule] = &[
    // The join token in the request is the proof.
    Rule { path: "/muster.v1.Identity/Enrol", needs: Needs::Nothing, kind: Kind::Changes, action: "agent.enrol" },
    sees("/muster.v1.Identity/Renew", Agent, "agent.renew"),
    // A probe has no token, and is told nothing but whether we serve. Every controller answers it itself.
    open("/grpc.health.v1.Health/Check", "health"),
    open("/grpc.health.v1.Health/Watch", "health"),
    sees("/muster.v1.AgentLink/Control", Agent, "agent.control"),
    sees("/muster.v1.AgentLink/Logs", Agent, "agent.logs"),
    sees("/muster.v1.AgentLink/Inputs", Agent, "agent.inputs"),
    sees("/muster.v1.AgentLink/PutResult", Agent, "agent.result"),
    sees("/muster.v1.AgentLink/Exec", Agent, "agent.exec"),
    sees("/muster.v1.Muster/Info", Viewer, "info"),
    sees("/muster.v1.Muster/Status", Viewer, "status"),
    sees("/muster.v1.Muster/ListJobs", Viewer, "list"),
    sees("/muster.v1.Muster/GetJob", Viewer, "show"),
    sees("/muster.v1.Muster/ListTasks", Viewer, "show"),
    sees("/muster.v1.Muster/WatchJob", Viewer, "wait"),
    sees("/muster.v1.Muster/Explain", Viewer, "explain"),
    sees("/muster.v1.Muster/Stats", Viewer, "stats"),
    sees("/muster.v1.Muster/GetResult", Viewer, "result"),
    sees("/muster.v1.Muster/Logs", Viewer, "logs"),
    sees("/muster.v1.Muster/SearchLogs", Viewer, "logs.search"),
    sees("/muster.v1.Muster/ListAgents", Viewer, "agents"),
    sees("/muster.v1.Muster/ListQueues", Viewer, "queue.list"),
    changes("/muster.v1.Muster/Submit", Operator, "submit"),
    changes("/muster.v1.Muster/Cancel", Operator, "cancel"),
    changes("/muster.v1.Muster/Retry", Operator, "retry"),
    changes("/muster.v1.Muster/Exec", Operator, "exec"),
    changes("/muster.v1.Muster/ExecTerminal", Operator, "exec"),
    changes("/muster.v1.Muster/SetQueue", Admin, "queue.set"),
    changes("/muster.v1.Muster/TendAgents", Admin, "agent.tend"),
    changes("/muster.v1.Access/CreateToken", Admin, "token.create"),
    sees("/muster.v1.Access/ListTokens", Admin, "token.list"),
    changes("/muster.v1.Access/RevokeToken", Admin, "token.revoke"),
    sees("/muster.v1.Access/ListAudit", Admin, "audit"),
    changes("/muster.v1.Admin/MakeJoinToken", Admin, "agent.invite"),
    changes("/muster.v1.Admin/RevokeAgent", Admin, "agent.revoke"),
    changes("/muster.v1.Backup/Take", Admin, "backup"),
    changes("/muster.v1.Backup/Promote", Admin, "promote"),
    sees("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Viewer, "reflection"),
    sees("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Viewer, "reflection"),
];

/// The rule of a call; none: there is no such call.
pub(in crate::grpc) fn rule(path: &str) -> Option<&'static Rule> {
    TABLE.iter().find(|rule| rule.path == path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::grpc::guard::tests::all_calls;

    #[test]
    fn every_call_of_every_service_has_a_rule_and_every_rule_a_call() {
        let calls = all_calls();
        assert!(calls.len() > 20, "{calls:?}");
        let known: BTreeSet<&str> = TABLE.iter().map(|rule| rule.path).collect();
        let missing: Vec<_> = calls.iter().filter(|call| !known.contains(call.as_str())).collect();
        assert!(missing.is_empty(), "declare in guard/table.rs who may call {missing:?}");
        let gone: Vec<_> = known.iter().filter(|path| !calls.contains(**path)).collect();
        assert!(gone.is_empty(), "these are calls no more: {gone:?}");
        assert_eq!(known.len(), TABLE.len(), "a call has two rules");
    }

    #[test]
    fn what_changes_something_is_for_more_than_viewers() {
        // Who enrols shows a join token, and is nobody before that.
        let changing = TABLE.iter().filter(|rule| rule.kind == Kind::Changes);
        for rule in changing.filter(|rule| rule.path != "/muster.v1.Identity/Enrol") {
            assert!(!matches!(rule.needs, Needs::Nothing | Needs::Role(Viewer)), "{rule:?}");
        }
    }
}
