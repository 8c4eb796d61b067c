//! The typed messages of the control channel, and how large each may be.

use super::{Alpn, frames::Message};
use orchestrator_core::protocol::{Down, JoinAnswer, JoinRequest, Up};

impl Message for Up {
    const NAME: &'static str = "message of the node";
    const LIMIT: usize = Alpn::Node.frame_limit();
}

impl Message for Down {
    const NAME: &'static str = "message of the leader";
    const LIMIT: usize = Alpn::Node.frame_limit();
}

impl Message for JoinRequest {
    const NAME: &'static str = "join request";
    const LIMIT: usize = Alpn::Join.frame_limit();
}

impl Message for JoinAnswer {
    const NAME: &'static str = "answer to the join request";
    const LIMIT: usize = Alpn::Join.frame_limit();
}
