//! Errors in one line.

/// An error and its causes, from the outermost to the root, as one line.
pub(in crate::daemon) fn text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        line.push_str(": ");
        line.push_str(&next.to_string());
        cause = next.source();
    }
    line
}
