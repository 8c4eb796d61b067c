//! Log output: to stderr, one line per event, filtered by `EDGED_LOG` (default `info`).

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Variable with the filter, in the syntax of `tracing_subscriber::EnvFilter`.
pub const FILTER_VARIABLE: &str = "EDGED_LOG";

/// What openraft tells, even as an error, is that another manager does not answer for a moment; what is wrong with this node's
/// store comes from the store itself. The others tell at `info` what matters to their own developers only.
const DEFAULT_FILTER: &str =
    "info,openraft=off,quinn=warn,mdns_sd=error,oci_client=warn,libcontainer=warn,netlink_proto=warn";

/// Starts logging. Called once, at the start of `main`.
pub fn init() {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let to_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(to_terminal).with_target(false);
    tracing_subscriber::registry().with(filter).with(lines).init();
}
