//! Messages of long-running commands: daemon, mirror, agent of a relay, validator.
//!
//! Owns their form on stderr. Shows events of this project's crates alone: those of libraries may quote addresses.
//! Relays do not use it; they print their declared lines only.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Begins to print events: from `info` on, with one `-v` from `debug` on, with two from `trace` on.
pub(crate) fn start(verbosity: u8) {
    let level = match verbosity {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let lines = tracing_subscriber::fmt::layer().event_format(Line).with_writer(std::io::stderr);
    // Targets begin with the crate's name. A second start, as in tests, changes nothing.
    let _ = tracing_subscriber::registry().with(lines).with(Targets::new().with_target("openrelay", level)).try_init();
}

/// One event as one line.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (level, target) = (*event.metadata().level(), event.metadata().target());
        match level {
            Level::INFO => write!(writer, "openrelay: ")?,
            Level::WARN => write!(writer, "openrelay: warning: ")?,
            Level::ERROR => write!(writer, "openrelay: error: ")?,
            _ => write!(writer, "openrelay: {} {target}: ", level.as_str().to_lowercase())?,
        }
        ctx.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn events_of_libraries_are_hidden_and_levels_are_named() {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = tracing_subscriber::fmt::layer().event_format(Line).with_writer(move || writer.clone());
        let targets = Targets::new().with_target("openrelay", LevelFilter::DEBUG);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines).with(targets), || {
            tracing::info!("connected in {} ms", 7);
            tracing::warn!("no mirror answers");
            tracing::debug!(relay = 3, "asked");
            tracing::trace!("hidden");
            tracing::error!(target: "hyper", "198.51.100.7 is gone");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "openrelay: connected in 7 ms",
                "openrelay: warning: no mirror answers",
                "openrelay: debug openrelay::log::tests: asked relay=3"
            ]
        );
    }
}
