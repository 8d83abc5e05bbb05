//! W3C trace context as text: the one thread that goes through `ctl`, controller, agent and process.
//!
//! <https://www.w3.org/TR/trace-context/#traceparent-header>: `00-<trace id>-<span id>-<flags>`.

use std::{fmt, str::FromStr};

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::otlp;

/// The trace parent of the span that is entered here; empty when spans go nowhere or there is none.
pub fn trace_parent_of_current_span() -> String {
    if !otlp::is_exporting() {
        return String::new();
    }
    let context = Span::current().context();
    let span = context.span();
    TraceParent::of(span.span_context()).map_or_else(String::new, |parent| parent.to_string())
}

/// The trace parent of the span that is entered here, or of a new trace: what a submission carries.
pub fn trace_parent_or_new() -> String {
    let current = trace_parent_of_current_span();
    if current.is_empty() { new_trace_parent() } else { current }
}

/// Makes `span` part of the trace that `trace_parent` names. Before the span is entered or made a
/// parent: afterwards it has begun, and this does nothing. An empty or foreign text does nothing.
pub fn set_parent(span: &Span, trace_parent: &str) {
    if !otlp::is_exporting() || trace_parent.is_empty() || span.is_disabled() {
        return;
    }
    let Ok(parent) = trace_parent.parse::<TraceParent>() else { return };
    // A span that has begun keeps its place; there is nothing better to do.
    let _begun = span.set_parent(Context::new().with_remote_span_context(parent.context()));
}

/// A trace parent of a trace that begins here, sampled. For programs whose own spans go nowhere.
pub fn new_trace_parent() -> String {
    TraceParent { trace: rand::random_range(1..=u128::MAX), span: new_span(), flags: SAMPLED }.to_string()
}

/// What a stranger sent, if it is a trace parent; one of a new trace otherwise.
pub fn trace_parent_from(text: &str) -> String {
    text.parse::<TraceParent>().map_or_else(|Invalid| new_trace_parent(), |parent| parent.to_string())
}

/// The same trace, another span: what a task's process gets. A new trace if `trace_parent` is none.
pub fn child_of(trace_parent: &str) -> String {
    match trace_parent.parse::<TraceParent>() {
        Ok(parent) => TraceParent { span: new_span(), ..parent }.to_string(),
        Err(Invalid) => new_trace_parent(),
    }
}

const SAMPLED: u8 = 1;

fn new_span() -> u64 {
    rand::random_range(1..=u64::MAX)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TraceParent {
    trace: u128,
    span: u64,
    flags: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Invalid;

impl TraceParent {
    fn of(context: &SpanContext) -> Option<Self> {
        let trace = u128::from_be_bytes(context.trace_id().to_bytes());
        let span = u64::from_be_bytes(context.span_id().to_bytes());
        context.is_valid().then(|| Self { trace, span, flags: context.trace_flags().to_u8() & SAMPLED })
    }

    fn context(self) -> SpanContext {
        let (trace, span) = (TraceId::from(self.trace), SpanId::from(self.span));
        SpanContext::new(trace, span, TraceFlags::new(self.flags), true, TraceState::NONE)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

impl FromStr for TraceParent {
    type Err = Invalid;

    /// As W3C asks: lower case only, no zero ids, later versions may go on after the flags.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (known, rest) = text.split_at_checked(55).ok_or(Invalid)?;
        let parts: Vec<&str> = known.split('-').collect();
        let [version, trace, span, flags] = parts[..] else { return Err(Invalid) };
        let version = hex(version, 2)?;
        if version == 0xff || !(rest.is_empty() || version > 0 && rest.starts_with('-')) {
            return Err(Invalid);
        }
        let span = u64::try_from(hex(span, 16)?).map_err(|_| Invalid)?;
        let flags = u8::try_from(hex(flags, 2)?).map_err(|_| Invalid)?;
        let parent = Self { trace: hex(trace, 32)?, span, flags: flags & SAMPLED };
        if parent.trace == 0 || parent.span == 0 { Err(Invalid) } else { Ok(parent) }
    }
}

fn hex(text: &str, width: usize) -> Result<u128, Invalid> {
    let lower = text.len() == width && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if lower { u128::from_str_radix(text, 16).map_err(|_| Invalid) } else { Err(Invalid) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_parent_is_read_as_the_standard_says() {
        let parent = TraceParent {
            trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            span: 0xb7ad_6b71_6920_3331,
            flags: SAMPLED,
        };
        assert_eq!(GOOD.parse(), Ok(parent));
        assert_eq!(parent.to_string(), GOOD);
        let table = [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", true, "not sampled"),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff", true, "unknown flags"),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true, "a later version"),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x", true, "a later version with more"),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x", false, "a later version, run on"),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x", false, "more than this version has"),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false, "the forbidden version"),
            ("00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false, "upper case"),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false, "no trace"),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false, "no span"),
            ("00-0af7651916cd43dd8448eb211c80319cb7ad6b7169203331-0101", false, "a dash is missing"),
            ("00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false, "a sign"),
            ("", false, "nothing"),
        ];
        for (text, good, what) in table {
            assert_eq!(text.parse::<TraceParent>().is_ok(), good, "{what}: {text}");
        }
    }

    #[test]
    fn a_child_is_another_span_of_the_same_trace() {
        let (parent, child) = (GOOD.parse::<TraceParent>().unwrap(), child_of(GOOD).parse::<TraceParent>().unwrap());
        assert_eq!((child.trace, child.flags), (parent.trace, parent.flags));
        assert_ne!(child.span, parent.span);
    }

    #[test]
    fn a_process_gets_a_trace_even_if_its_job_has_none() {
        for text in ["", "nonsense\0"] {
            assert!(child_of(text).parse::<TraceParent>().is_ok(), "{text:?}");
        }
        assert_ne!(new_trace_parent(), new_trace_parent());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in prop_oneof![any::<String>(), "[0-9a-fü-]{50,58}"]) {
            if let Ok(parent) = text.parse::<TraceParent>() {
                prop_assert_eq!(parent.to_string().parse(), Ok(parent));
            }
        }

        #[test]
        fn a_trace_parent_survives_its_own_text(trace in 1..=u128::MAX, span in 1..=u64::MAX, flags in 0..=1_u8) {
            let parent = TraceParent { trace, span, flags };
            prop_assert_eq!(parent.to_string().parse(), Ok(parent));
            prop_assert_eq!(TraceParent::of(&parent.context()), Some(parent));
        }
    }
}
