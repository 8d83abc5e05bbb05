//! The controller that ctl speaks to: finding it, following work, paging through answers.

mod dial;
pub(crate) mod find;
pub(crate) mod follow;
pub(crate) mod output;
pub(crate) mod submit;
pub(crate) mod tasks;

use std::{error::Error as _, time::Duration};

use muster_common::proto::v1::{self, muster_client::MusterClient};
use tonic::transport::{Channel, Endpoint};

use self::{
    dial::Dial,
    find::{Place, Source},
};
use crate::{error::Error, exit::Exit};

/// One submission may carry an array of a million items; answers are pages and stay small.
const LARGEST_ANSWER: usize = 64 << 20;

/// For all addresses together.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A dead connection is noticed after this plus the answer's limit.
const PING_EVERY: Duration = Duration::from_secs(20);

/// The protocol's client.
pub(crate) type Rpc = MusterClient<Channel>;

/// A connection to the controller at a place.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Calls take `&mut`; clones share the connection.
    pub(crate) rpc: Rpc,
    pub(crate) place: Place,
}

impl Client {
    /// Connects, so that a controller that is not there is named at once.
    pub(crate) async fn connect(place: Place) -> Result<Self, Error> {
        let hosts = place.hosts()?;
        // The first stands for all of them: what is dialled is for `Dial` to say.
        let first = hosts.first().map_or_else(String::new, |host| format!("http://{host}"));
        let endpoint = Endpoint::from_shared(first)
            .map_err(|error| {
                Error::new(Exit::USAGE, format!("`{}` ({}) is no URL: {error}", place.url, place.source))
                    .next("write it like http://127.0.0.1:7717")
            })?
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_while_idle(true);
        let channel =
            endpoint.connect_with_connector(Dial::new(hosts)).await.map_err(|error| unreachable(&place, &error))?;
        let rpc = MusterClient::new(channel)
            .max_decoding_message_size(LARGEST_ANSWER)
            .max_encoding_message_size(LARGEST_ANSWER);
        Ok(Self { rpc, place })
    }
}

/// What a person reads when nobody answers: what was tried, and what to do.
fn unreachable(place: &Place, error: &tonic::transport::Error) -> Error {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        reason = inner.to_string();
        source = inner.source();
    }
    let error = Error::new(Exit::UNREACHABLE, format!("no controller answers at {}: {reason}", place.url))
        .detail(format!("the address is from {}", place.source));
    match place.source {
        Source::Default => error
            .detail("--controller, MUSTER_CONTROLLER and the config file name none")
            .next("start one here with `ctl dev`, or name yours with --controller URL or MUSTER_CONTROLLER=URL"),
        Source::Flag | Source::Variable | Source::File(_) => {
            error.next("check that the controller runs there and that the address is right")
        }
        Source::Inside => error.next("this is a fault of Muster; `ctl dev` in another terminal may say more"),
    }
}

/// Work as a person names it.
#[expect(clippy::unnecessary_wraps, reason = "the protocol's fields of messages are options")]
pub(crate) fn selector(text: &str) -> Option<v1::Selector> {
    Some(v1::Selector { text: text.to_owned() })
}

/// Who asks: the name of the person's account on this machine.
pub(crate) fn by() -> String {
    ["USER", "LOGNAME", "USERNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_else(|| "ctl".to_owned())
}
