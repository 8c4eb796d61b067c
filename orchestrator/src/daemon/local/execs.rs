//! Processes run in containers by hand: made, started once, asked about.

use crate::{
    api::node::{ExecIo, ExecSpec, ExecState, Failure, TerminalSize},
    runtime::Runtime,
};
use orchestrator_core::model::TaskId;

/// temporary
#[derive(Debug, Default)]
pub(in crate::daemon) struct Execs {}

impl Execs {
    pub(super) fn create(&self, _task: TaskId, _spec: ExecSpec) -> Result<String, Failure> {
        Err(Failure::Unsupported("exec".into()))
    }
    pub(super) async fn start(&self, _r: &Runtime, _id: &str, _s: Option<TerminalSize>) -> Result<ExecIo, Failure> {
        Err(Failure::Unsupported("exec".into()))
    }
    pub(super) async fn resize(&self, _id: &str, _s: TerminalSize) -> Result<(), Failure> {
        Err(Failure::Unsupported("exec".into()))
    }
    pub(super) fn inspect(&self, _id: &str) -> Result<ExecState, Failure> {
        Err(Failure::Unsupported("exec".into()))
    }
}
