//! The controller that ctl speaks to: finding it, following work, paging through answers.

pub(crate) mod credential;
pub(crate) mod find;
pub(crate) mod follow;
pub(crate) mod output;
pub(crate) mod search;
pub(crate) mod submit;
pub(crate) mod tasks;

use std::{error::Error as _, sync::Arc, time::Duration};

use muster_common::{
    proto::v1::{
        self, access_client::AccessClient, admin_client::AdminClient, backup_client::BackupClient,
        muster_client::MusterClient,
    },
    tls::{self, Dial, Network, Tcp, Trust},
};
use rustls::{CertificateError, ClientConfig};
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use self::{
    credential::Credential,
    find::{Place, Source, Trusted},
};
use crate::{error::Error, exit::Exit};

/// One submission may carry an array of a million items; answers are pages and stay small.
const LARGEST_ANSWER: usize = 64 << 20;

/// For all addresses together.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A dead connection is noticed after this plus the answer's limit.
const PING_EVERY: Duration = Duration::from_secs(20);

/// The protocol's client.
pub(crate) type Rpc = MusterClient<Authorised>;

/// A connection that says with every call who asks.
type Authorised = InterceptedService<Channel, Credential>;

/// A connection to the controller at a place.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Calls take `&mut`; clones share the connection.
    pub(crate) rpc: Rpc,
    /// The same, for tokens and the audit log.
    pub(crate) access: AccessClient<Authorised>,
    /// The same, for agents that join and leave.
    pub(crate) admin: AdminClient<Authorised>,
    /// The same, for copies of the installation and its moves.
    pub(crate) backup: BackupClient<Authorised>,
    pub(crate) place: Place,
}

impl Client {
    /// Connects, so that a controller that is not there is named at once.
    pub(crate) async fn connect(place: Place, credential: Credential) -> Result<Self, Error> {
        Self::connect_over(Arc::new(Tcp), place, credential).await
    }

    /// The same over another network.
    pub(crate) async fn connect_over(
        network: Arc<dyn Network>,
        place: Place,
        credential: Credential,
    ) -> Result<Self, Error> {
        let hosts = place.hosts()?;
        let tls = secure(&place)?;
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
        let channel = Dial::new(hosts, tls).through(network).open(&endpoint).await;
        let channel = channel.map_err(|error| unreachable(&place, &error))?;
        let authorised = InterceptedService::new(channel, credential);
        let access = AccessClient::new(authorised.clone());
        let admin = AdminClient::new(authorised.clone());
        let backup = BackupClient::new(authorised.clone());
        let rpc = MusterClient::new(authorised)
            .max_decoding_message_size(LARGEST_ANSWER)
            .max_encoding_message_size(LARGEST_ANSWER);
        Ok(Self { rpc, access, admin, backup, place })
    }
}

/// How connections to it are secured; none: it is spoken to in plain text.
fn secure(place: &Place) -> Result<Option<Arc<ClientConfig>>, Error> {
    let Some(Trusted { ca, source }) = place.trusted()? else { return Ok(None) };
    let usage = |error: tls::Error| {
        Error::new(Exit::USAGE, format!("{error} ({source})"))
            .next("the controller keeps its CA certificate as `ca.pem` in its data folder: copy that")
    };
    let certificates = tls::certificates(ca, "a CA certificate").map_err(usage)?;
    let config = tls::client(&Trust::Authority(certificates), None).map_err(usage)?;
    Ok(Some(Arc::new(config)))
}

/// What a person reads when nobody answers: what was tried, and what to do.
fn unreachable(place: &Place, error: &tonic::transport::Error) -> Error {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(tls) = tls_error(inner) {
            return distrusted(place, tls);
        }
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

/// What TLS says, inside or as the cause of an error of the socket.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let inside = inside.and_then(|inside| inside.downcast_ref());
    inside.or_else(|| error.downcast_ref())
}

/// What a person reads when somebody answers who is not believed.
fn distrusted(place: &Place, error: &rustls::Error) -> Error {
    let url = &place.url;
    let ca = place.ca.as_ref().map(|trusted| format!("the CA is from {}", trusted.source));
    let (what, next) = match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => (
            format!("{url} shows a certificate that another CA signed"),
            "check that the address is right, and take `ca.pem` from the data folder of that controller",
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => (
            format!("{url} shows a certificate for other names: {error}"),
            "use a name that stands in it, or add this one to `names` under [tls] in the controller's file",
        ),
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            (format!("{url} shows a certificate that has expired"), "check the clocks of both machines")
        }
        rustls::Error::InvalidMessage(_) => {
            (format!("{url} does not speak TLS"), "use http:// if that controller was started without --tls")
        }
        other => (format!("no secure connection to {url}: {other}"), "the controller's log may say more"),
    };
    let mut told = Error::new(Exit::UNREACHABLE, what).detail(format!("the address is from {}", place.source));
    if let Some(ca) = ca {
        told = told.detail(ca);
    }
    told.next(next)
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
