//! Programs run in containers by hand: made, started once, asked about. Kept in memory only: a restarted daemon has lost the
//! connections to them anyway.

use super::containers::of_runtime;
use crate::{
    api::node::{ExecIo, ExecSpec, ExecState, Failure, Stdio, TerminalSize},
    daemon::identity::random,
    runtime::{self, ExecSession, Runtime, Stream, Terminal},
};
use bytes::Bytes;
use futures_util::StreamExt;
use orchestrator_core::model::TaskId;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Execs remembered: clients ask for the exit code right after the end, so old ones are of no use.
const REMEMBERED: usize = 256;

/// All execs since the daemon started, by id.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct Execs(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// In the order in which they were made.
    made: u64,
    execs: BTreeMap<String, Exec>,
}

#[derive(Debug)]
struct Exec {
    number: u64,
    task: TaskId,
    spec: ExecSpec,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Made,
    Starting,
    Running { pid: u32, terminal: Option<Arc<Terminal>> },
    Ended { code: i32 },
}

impl Execs {
    pub(super) fn create(&self, task: TaskId, spec: ExecSpec) -> Result<String, Failure> {
        if spec.command.is_empty() {
            return Err(Failure::Invalid("No exec command specified".into()));
        }
        let mut known = self.lock();
        if known.execs.len() >= REMEMBERED {
            let oldest = known.execs.iter().filter(|(_, exec)| matches!(exec.phase, Phase::Ended { .. } | Phase::Made));
            let Some(oldest) = oldest.min_by_key(|(_, exec)| exec.number).map(|(id, _)| id.clone()) else {
                return Err(Failure::Unavailable(format!("{REMEMBERED} execs are running; end some first")));
            };
            known.execs.remove(&oldest);
        }
        known.made += 1;
        let id = format!("{:032x}{:032x}", random(), random());
        let exec = Exec { number: known.made, task, spec, phase: Phase::Made };
        known.execs.insert(id.clone(), exec);
        Ok(id)
    }

    pub(super) async fn start(
        &self,
        runtime: &Runtime,
        id: &str,
        size: Option<TerminalSize>,
    ) -> Result<ExecIo, Failure> {
        let (task, spec) = {
            let mut known = self.lock();
            let exec = known.execs.get_mut(id).ok_or_else(|| no_such(id))?;
            if !matches!(exec.phase, Phase::Made) {
                return Err(Failure::Conflict(format!("exec {id} has been started already")));
            }
            exec.phase = Phase::Starting;
            (exec.task, exec.spec.clone())
        };
        // On a task of its own: whoever asked may go away at any moment, and an exec that is half started must come to an
        // end all the same. Without anybody to take its streams, the program sees them end.
        let (execs, runtime, id) = (self.clone(), runtime.clone(), id.to_owned());
        let started = tokio::spawn(async move { execs.run(&runtime, id, task, spec, size).await }).await;
        started
            .unwrap_or_else(|cause| Err(Failure::Internal { what: "starting the exec".into(), cause: Box::new(cause) }))
    }

    async fn run(
        &self,
        runtime: &Runtime,
        id: String,
        task: TaskId,
        spec: ExecSpec,
        size: Option<TerminalSize>,
    ) -> Result<ExecIo, Failure> {
        let asked = runtime::ExecSpec {
            args: spec.command,
            env: spec.env,
            tty: spec.tty,
            size: size.map(|size| (size.rows, size.columns)),
            stdin: spec.stdin,
            user: spec.user,
            workdir: spec.workdir,
            privileged: spec.privileged,
        };
        let session = match runtime.exec(task, asked).await {
            Ok(session) => session,
            Err(error) => {
                // Docker's codes for a command that cannot be run and for one that is not there (exec(1p)).
                let code = if matches!(error, runtime::RuntimeError::NoSuchCommand { .. }) { 127 } else { 126 };
                self.set(&id, Phase::Ended { code });
                return Err(of_runtime(error));
            }
        };
        let ExecSession { pid, stdin, mut output, terminal, mut exit } = session;
        self.set(&id, Phase::Running { pid, terminal: terminal.map(Arc::new) });
        let execs = self.clone();
        let (ended, wait_for_end) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(async move {
            let code = exit.wait().await.unwrap_or(137);
            execs.set(&id, Phase::Ended { code });
            drop(ended);
        });
        let pieces = futures_util::stream::poll_fn(move |context| output.poll_next(context)).map(|piece| {
            let (stream, bytes) = piece?;
            let stream = if stream == Stream::Stderr { Stdio::Err } else { Stdio::Out };
            Ok((stream, Bytes::from(bytes)))
        });
        // The stream ends after the exit code is known, as clients ask for it then.
        let tail = futures_util::stream::once(async move {
            let _ended = wait_for_end.await;
        });
        let output = pieces.map(Some).chain(tail.map(|()| None)).filter_map(std::future::ready);
        Ok(ExecIo {
            stdin: match stdin {
                Some(stdin) => Box::pin(stdin),
                None => Box::pin(tokio::io::sink()),
            },
            output: output.boxed(),
        })
    }

    pub(super) async fn resize(&self, id: &str, size: TerminalSize) -> Result<(), Failure> {
        let terminal = match self.lock().execs.get(id).map(|exec| &exec.phase) {
            None => return Err(no_such(id)),
            Some(Phase::Running { terminal: Some(terminal), .. }) => terminal.clone(),
            Some(_) => return Err(Failure::Conflict(format!("exec {id} has no terminal or does not run"))),
        };
        terminal
            .resize(size.rows, size.columns)
            .map_err(|cause| Failure::Internal { what: "sizing the terminal".into(), cause: Box::new(cause) })
    }

    pub(super) fn inspect(&self, id: &str) -> Result<ExecState, Failure> {
        let known = self.lock();
        let exec = known.execs.get(id).ok_or_else(|| no_such(id))?;
        let (running, exit_code, pid) = match exec.phase {
            Phase::Made => (false, None, None),
            Phase::Starting => (true, None, None),
            Phase::Running { pid, .. } => (true, None, Some(pid)),
            Phase::Ended { code } => (false, Some(code), None),
        };
        Ok(ExecState { task: exec.task, spec: exec.spec.clone(), running, exit_code, pid })
    }

    fn set(&self, id: &str, phase: Phase) {
        if let Some(exec) = self.lock().execs.get_mut(id) {
            exec.phase = phase;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_such(id: &str) -> Failure {
    Failure::NotFound(format!("No such exec instance: {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::RuntimeConfig;
    use futures_util::FutureExt;
    use std::time::{Duration, Instant};

    #[tokio::test]
    async fn an_exec_whose_asker_goes_away_while_it_starts_comes_to_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let config = RuntimeConfig {
            state_dir: dir.path().join("state"),
            run_dir: dir.path().join("run"),
            node_key: "execs-test".into(),
            shim_exe: "/nowhere".into(),
        };
        let runtime = Runtime::open(config).await.unwrap();
        let execs = Execs::default();
        let spec = ExecSpec { command: vec!["true".into()], ..ExecSpec::default() };
        let id = execs.create(TaskId(1), spec).unwrap();
        // Polled once, then dropped.
        assert!(execs.start(&runtime, &id, None).now_or_never().is_none());
        let deadline = Instant::now() + Duration::from_secs(20);
        while execs.inspect(&id).unwrap().running {
            assert!(Instant::now() < deadline, "it starts for ever");
            tokio::task::yield_now().await;
        }
        assert_eq!(execs.inspect(&id).unwrap().exit_code, Some(126), "there is no such container");
    }
}
