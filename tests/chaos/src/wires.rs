//! The proxies: one on every way that a fault may break, all of them in the hub's network.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context, Result};
use muster_integration::proxy::{Mode, Proxy};

use crate::{
    cast::{AGENTS, CONTROLLERS, ETCDS, Node},
    ground::{Ground, HUB, HUB_ADDRESS, at},
};

/// One answer of so many is lost, on the ways to the store and to the doors (X13: 5 %).
pub(crate) const LOSSY: Mode = Mode::LoseAnswers(20);

/// A way from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wire {
    /// From a controller to a member of etcd.
    Store(usize, usize),
    /// From an agent to a controller.
    Link(usize, usize),
    /// From other controllers to one.
    Forward(usize),
    /// From people to a controller.
    Door(usize),
}

impl Wire {
    /// Where it begins: what the one is told instead of the other's own address.
    pub(crate) fn begin(self) -> (Ipv4Addr, u16) {
        let number = |n: usize| u16::try_from(n).unwrap_or(0);
        let port = match self {
            Self::Store(controller, etcd) => 7100 + 10 * number(controller) + number(etcd),
            Self::Link(agent, controller) => 7200 + 10 * number(agent) + number(controller),
            Self::Forward(controller) => 7300 + number(controller),
            Self::Door(controller) => 7400 + number(controller),
        };
        (HUB_ADDRESS, port)
    }

    fn end(self) -> (Ipv4Addr, u16) {
        match self {
            Self::Store(_, etcd) => (Node::Etcd(etcd).address(), 2379),
            Self::Link(_, controller) | Self::Forward(controller) | Self::Door(controller) => {
                (Node::Controller(controller).address(), 7717)
            }
        }
    }

    /// What it does when nothing is broken on purpose: answers get lost now and then where X13 asks for it.
    fn usual(self) -> Mode {
        match self {
            Self::Store(..) | Self::Door(_) => LOSSY,
            Self::Link(..) | Self::Forward(_) => Mode::Pass,
        }
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let store = (0..CONTROLLERS).flat_map(|from| (0..ETCDS).map(move |to| Self::Store(from, to)));
        let links = (0..AGENTS).flat_map(|from| (0..CONTROLLERS).map(move |to| Self::Link(from, to)));
        store.chain(links).chain((0..CONTROLLERS).map(Self::Forward)).chain((0..CONTROLLERS).map(Self::Door))
    }
}

/// All ways.
pub(crate) struct Wires(BTreeMap<Wire, Proxy>);

impl Wires {
    /// Lays them, all of them whole.
    pub(crate) fn lay(ground: &Ground) -> Result<Self> {
        let laid = ground.inside(HUB, || {
            let one = |wire: Wire| {
                let ((from, port), (to, its)) = (wire.begin(), wire.end());
                let proxy = Proxy::between(at(from, port), at(to, its)).with_context(|| format!("{wire:?}"))?;
                Ok((wire, proxy))
            };
            Wire::all().map(one).collect::<Result<_>>()
        })?;
        Ok(Self(laid))
    }

    /// Breaks one way, or mends it in part.
    pub(crate) fn set(&self, wire: Wire, mode: Mode) {
        if let Some(proxy) = self.0.get(&wire) {
            proxy.set(mode);
        }
    }

    /// As it is when no fault is on it; with `is_lossy`, as X13 asks.
    pub(crate) fn mend(&self, wire: Wire, is_lossy: bool) {
        self.set(wire, if is_lossy { wire.usual() } else { Mode::Pass });
    }

    /// All of them.
    pub(crate) fn mend_all(&self, is_lossy: bool) {
        Wire::all().for_each(|wire| self.mend(wire, is_lossy));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wire_has_a_beginning_of_its_own() {
        let begins: std::collections::BTreeSet<_> = Wire::all().map(Wire::begin).collect();
        assert_eq!(begins.len(), Wire::all().count());
    }
}
