//! Logs as records of the system's journal, in its own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): the level and what a
//! line is about are fields that `journalctl JOB=17 -p warning` finds; the journal adds the time.

use std::{
    fmt::{self, Write as _},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        linux::fs::MetadataExt as _,
        unix::net::UnixDatagram,
    },
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// A record goes in one datagram; longer texts are cut, for a line of a log is no place for more.
const TEXT_MAX: usize = 32 << 10;
/// Fields under their own names, because people look for them; others are `MUSTER_…`, so that none is taken for one of
/// the journal's.
const KNOWN: [&str; 8] = ["job", "task", "attempt", "token", "agent", "session", "term", "queue"];

/// The way to the journal, if that is where `stderr` goes: `JOURNAL_STREAM` names the same file (systemd.exec(5)).
pub(super) fn of_stderr(stream: Option<&str>) -> Option<Journal> {
    let is_ours = names(stream?, io::stderr().as_fd()).unwrap_or(false);
    // Where it cannot be reached, plain lines are as good.
    is_ours.then(|| Journal::at(SOCKET)).and_then(Result::ok)
}

/// Whether `stream` (`device:inode`) is the file behind `fd`.
fn names(stream: &str, fd: BorrowedFd<'_>) -> io::Result<bool> {
    let file = std::fs::File::from(fd.try_clone_to_owned()?).metadata()?;
    Ok(stream == format!("{}:{}", file.st_dev(), file.st_ino()))
}

/// The journal.
#[derive(Debug)]
pub(super) struct Journal(UnixDatagram);

/// What a span or an event says: its text, and its fields as they go to the journal.
#[derive(Default)]
struct Said {
    message: String,
    text: String,
    fields: Vec<u8>,
}

impl Journal {
    pub(super) fn at(path: &str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // A log that is full must hold up nobody.
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    fn record(&self, metadata: &Metadata<'_>, spans: &[u8], said: Said) {
        let mut record = Vec::with_capacity(256);
        let Said { mut message, text, fields } = said;
        message.push_str(&text);
        field(&mut record, "MESSAGE", &message);
        field(&mut record, "PRIORITY", priority(*metadata.level()));
        field(&mut record, "TARGET", metadata.target());
        record.extend_from_slice(spans);
        record.extend_from_slice(&fields);
        // Who cannot log cannot say so either.
        let _lost = self.0.send(&record);
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut said = Said::default();
        attributes.record(&mut said);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(said);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(said) = span.extensions_mut().get_mut::<Said>()
        {
            values.record(said);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        let mut spans = Vec::new();
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Said>() {
                spans.extend_from_slice(&of_span.fields);
            }
        }
        self.record(event.metadata(), &spans, said);
    }
}

impl Visit for Said {
    fn record_debug(&mut self, name: &Field, value: &dyn fmt::Debug) {
        self.keep(name.name(), &format!("{value:?}"), false);
    }

    fn record_str(&mut self, name: &Field, value: &str) {
        self.keep(name.name(), value, true);
    }
}

impl Said {
    fn keep(&mut self, name: &str, value: &str, quoted: bool) {
        if name == "message" {
            value.clone_into(&mut self.message);
            return;
        }
        // As in plain lines, so that nobody has to learn two ways to read them.
        let _never_fails =
            if quoted { write!(self.text, " {name}={value:?}") } else { write!(self.text, " {name}={value}") };
        field(&mut self.fields, &journal_name(name), value);
    }
}

/// The journal takes capital letters, digits and underscores.
fn journal_name(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).take(56).collect();
    if KNOWN.contains(&name) { plain } else { format!("MUSTER_{plain}") }
}

/// syslog(3).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// One field: on a line, or with its length where the value has lines of its own.
fn field(record: &mut Vec<u8>, name: &str, value: &str) {
    let value = value.get(..value.floor_char_boundary(TEXT_MAX)).unwrap_or_default();
    record.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        record.push(b'\n');
        record.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        record.push(b'=');
    }
    record.extend_from_slice(value.as_bytes());
    record.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs::File};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Reads a record as the journal does.
    fn read(mut bytes: &[u8]) -> BTreeMap<String, Vec<String>> {
        let mut found = BTreeMap::<String, Vec<String>>::new();
        while !bytes.is_empty() {
            let at = bytes.iter().position(|byte| matches!(byte, b'=' | b'\n')).unwrap();
            let (name, rest) = bytes.split_at(at);
            let (value, rest) = if rest[0] == b'=' {
                let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
                (&rest[1..end], &rest[end..])
            } else {
                let length = u64::from_le_bytes(rest[1..9].try_into().unwrap()) as usize;
                rest[9..].split_at(length)
            };
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            found.entry(text(name)).or_default().push(text(value));
            bytes = rest.strip_prefix(b"\n").unwrap();
        }
        found
    }

    /// What reaches the journal of what `say` logs.
    fn logged(say: impl FnOnce()) -> Vec<BTreeMap<String, Vec<String>>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let journal = Journal::at(path.to_str().unwrap()).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), say);
        let mut bytes = vec![0; 1 << 20];
        let mut records = Vec::new();
        while let Ok(length) = socket.recv(&mut bytes) {
            records.push(read(&bytes[..length]));
        }
        records
    }

    fn one<'a>(record: &'a BTreeMap<String, Vec<String>>, name: &str) -> &'a str {
        let values = record.get(name).unwrap_or_else(|| panic!("{name} is not in {record:?}"));
        assert_eq!(values.len(), 1, "{name}: {record:?}");
        &values[0]
    }

    #[test]
    fn a_line_is_a_record_with_its_level_and_what_it_is_about() {
        let records = logged(|| {
            let why = "two\nlines";
            tracing::warn!(job = 17, task = "scan[3]", why, count = 2_u64, "ending an attempt");
        });
        let [record] = &records[..] else { panic!("{records:?}") };
        assert_eq!(one(record, "MESSAGE"), r#"ending an attempt job=17 task="scan[3]" why="two\nlines" count=2"#);
        assert_eq!([one(record, "PRIORITY"), one(record, "JOB"), one(record, "TASK")], ["4", "17", "scan[3]"]);
        assert_eq!([one(record, "MUSTER_WHY"), one(record, "MUSTER_COUNT")], ["two\nlines", "2"]);
        assert!(one(record, "TARGET").starts_with("muster_common"));
    }

    #[test]
    fn levels_are_those_of_the_system_log() {
        let records = logged(|| {
            tracing::error!("e");
            tracing::info!("i");
            tracing::debug!("d");
        });
        let levels: Vec<_> = records.iter().map(|record| one(record, "PRIORITY")).collect();
        assert_eq!(levels, ["3", "6", "7"]);
    }

    #[test]
    fn what_happens_within_a_span_has_its_fields_as_well() {
        let records = logged(|| {
            let span = tracing::info_span!("attempt", job = tracing::field::Empty, agent = "big-1");
            span.record("job", 7);
            span.in_scope(|| tracing::info!("started"));
        });
        assert_eq!((one(&records[0], "JOB"), one(&records[0], "AGENT")), ("7", "big-1"));
        assert_eq!(one(&records[0], "MESSAGE"), "started");
    }

    #[test]
    fn no_field_can_pass_for_one_of_the_journals() {
        let records = logged(|| tracing::info!(PRIORITY = "0", _UID = 0, "a.b" = 1, "x"));
        let record = &records[0];
        assert_eq!((one(record, "PRIORITY"), one(record, "MUSTER_PRIORITY")), ("6", "0"));
        assert_eq!((one(record, "MUSTER__UID"), one(record, "MUSTER_A_B")), ("0", "1"));
    }

    #[test]
    fn a_text_without_end_is_cut_and_not_lost() {
        let records = logged(|| tracing::info!(text = "ä".repeat(1 << 20), "long"));
        assert!(one(&records[0], "MUSTER_TEXT").len() <= TEXT_MAX);
    }

    #[test]
    fn only_the_stream_that_the_journal_made_is_taken_for_it() {
        let file = File::open("/dev/null").unwrap();
        let about = file.metadata().unwrap();
        let (device, inode) = (about.st_dev(), about.st_ino());
        let is_it = |stream: &str| names(stream, file.as_fd()).unwrap();
        assert!(is_it(&format!("{device}:{inode}")));
        for other in [String::new(), "8:1".to_owned(), format!("{device}:{}", inode + 1), format!("{device}:{inode} ")]
        {
            assert!(!is_it(&other), "{other}");
        }
        assert!(of_stderr(None).is_none() && of_stderr(Some("1:1")).is_none());
    }
}
