//! What carries words between the parts of a cluster. Sessions between the leader and the agent of its own node stay within
//! the process.

mod session;

pub use session::{Message, Session, Sessions};
