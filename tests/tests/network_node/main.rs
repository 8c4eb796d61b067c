//! The node's network on a real kernel: every test is a node of its own, in a network and a mount namespace that end
//! with it, beside an "outside" namespace at the other end of its uplink. Nothing of the machine is touched.

#![expect(clippy::unwrap_used, reason = "a test may unwrap; the lint's own exception does not reach helpers of tests")]

mod attachments;
mod names;
mod support;
