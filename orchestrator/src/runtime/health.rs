//! Whether a running container works, by running a check inside it from time to time. [`Checkup`] decides, without clock and
//! effects: when the next check is due and what a result means, by Docker's rules. [`watch`] carries it out and keeps the
//! newest health in the container's folder, so that a restarted `edged` goes on where the last one stopped.
//!
//! ```text
//!            success                    `retries` failures in a row
//! Starting ──────────► Healthy ──────────────────────────────────────► Unhealthy
//!     │                   ▲                     success                    │
//!     │                   └────────────────────────────────────────────────┘
//!     └── `retries` failures in a row, those in the start period not counted ──► Unhealthy
//! ```

use super::{
    ExecSpec, Health, HealthResult, HealthStatus, Runtime, RuntimeError, error_line,
    files::{self, Started},
    log_format::now_nanos,
    process_ref::ProcessRef,
};
use orchestrator_core::model::{HealthCheck, HealthTest, Millis, TaskId, UnixMillis};
use std::time::Duration;

/// Results that are kept, and bytes of output of each (Docker's numbers).
const RESULTS_KEPT: usize = 5;
const OUTPUT_BYTES: usize = 4096;
/// Exit code of a check that did not end by itself.
const NO_EXIT_CODE: i32 = -1;

impl Health {
    /// The health of a container that no check has looked at.
    pub(crate) const fn starting() -> Self {
        Self { status: HealthStatus::Starting, failing_streak: 0, log: Vec::new() }
    }
}

/// When to check, and what results mean.
#[derive(Clone, Debug)]
pub(crate) struct Checkup {
    check: HealthCheck,
    started_at: UnixMillis,
    health: Health,
}

impl Checkup {
    pub(crate) fn new(check: HealthCheck, started_at: UnixMillis, health: Health) -> Self {
        Self { check, started_at, health }
    }

    /// When the next check is due, which may have passed.
    pub(crate) fn due(&self) -> UnixMillis {
        let last = self.health.log.last().map_or(self.started_at, |result| result.end);
        let starting = self.health.status == HealthStatus::Starting && self.in_start_period(last);
        last + if starting { self.check.start_interval } else { self.check.interval }
    }

    /// Takes a result in.
    pub(crate) fn take(&mut self, result: HealthResult) {
        let health = &self.health;
        let forgiven = health.status == HealthStatus::Starting && self.in_start_period(result.end);
        if result.exit_code == 0 {
            self.health.failing_streak = 0;
            self.health.status = HealthStatus::Healthy;
        } else if !forgiven {
            self.health.failing_streak += 1;
            if self.health.failing_streak >= self.check.retries.max(1) {
                self.health.status = HealthStatus::Unhealthy;
            }
        }
        if self.health.log.len() == RESULTS_KEPT {
            self.health.log.remove(0);
        }
        self.health.log.push(result);
    }

    fn in_start_period(&self, at: UnixMillis) -> bool {
        at.since(self.started_at) < self.check.start_period
    }
}

/// Checks a container from its start on, for as long as it is polled. Never returns.
pub(crate) async fn watch(runtime: &Runtime, task: TaskId) {
    let dir = runtime.places(task).run;
    let Ok(Some(check)) = files::read::<HealthCheck>(&dir, files::HEALTH_CHECK) else {
        return std::future::pending().await;
    };
    let mut changes = runtime.changes();
    let started_at = loop {
        match files::read::<Started>(&dir, files::STARTED) {
            Ok(Some(started)) => break UnixMillis(started.at),
            _ if changes.changed().await.is_err() => return std::future::pending().await,
            _ => {}
        }
    };
    let health = files::read(&dir, files::HEALTH).ok().flatten().unwrap_or_else(Health::starting);
    let mut checkup = Checkup::new(check, started_at, health);
    loop {
        tokio::time::sleep(Duration::from_millis(checkup.due().since(now()).0)).await;
        let start = now();
        let (exit_code, output) = run(runtime, task, &checkup.check).await;
        let before = checkup.health.status;
        checkup.take(HealthResult { start, end: now(), exit_code, output });
        if let Err(error) = files::write(&dir, files::HEALTH, &checkup.health) {
            tracing::warn!(%task, %error, "the health of a container cannot be recorded");
        }
        if checkup.health.status != before {
            runtime.notify();
        }
    }
}

/// Runs the check once: exit code and output.
async fn run(runtime: &Runtime, task: TaskId, check: &HealthCheck) -> (i32, String) {
    let args = match &check.test {
        HealthTest::Exec(args) => args.clone(),
        HealthTest::Shell(line) => vec!["/bin/sh".into(), "-c".into(), line.clone()],
        HealthTest::None => Vec::new(),
    };
    let mut session = match runtime.exec(task, ExecSpec { args, ..ExecSpec::default() }).await {
        Ok(session) => session,
        Err(error) => return (NO_EXIT_CODE, error_line(&error)),
    };
    let process = ProcessRef::of(session.pid);
    let mut output = Vec::new();
    let whole = async {
        while let Some(Ok((_, piece))) = session.output.next().await {
            let room = OUTPUT_BYTES.saturating_sub(output.len());
            output.extend_from_slice(&piece[..piece.len().min(room)]);
        }
        session.exit.wait().await
    };
    let ended = tokio::time::timeout(Duration::from_millis(check.timeout.0), whole).await;
    match ended {
        Ok(Ok(code)) => (code, String::from_utf8_lossy(&output).into_owned()),
        Ok(Err(error)) => (NO_EXIT_CODE, RuntimeError::to_string(&error)),
        Err(_) => {
            if let Ok(process) = process {
                let _ = process.signal(libc::SIGKILL);
            }
            let Millis(millis) = check.timeout;
            (
                NO_EXIT_CODE,
                format!(
                    "Health check exceeded timeout ({:?}): {}",
                    Duration::from_millis(millis),
                    String::from_utf8_lossy(&output)
                ),
            )
        }
    }
}

fn now() -> UnixMillis {
    UnixMillis(now_nanos() / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkup(start_period: u64) -> Checkup {
        let check = HealthCheck {
            interval: Millis(30),
            start_interval: Millis(5),
            start_period: Millis(start_period),
            retries: 2,
            ..HealthCheck::new(HealthTest::Shell("true".into()))
        };
        Checkup::new(check, UnixMillis(1000), Health::starting())
    }

    /// Takes results that end at these times, and yields the states after each.
    fn after(checkup: &mut Checkup, results: &[(u64, i32)]) -> Vec<HealthStatus> {
        let take = |(end, exit_code): &(u64, i32)| {
            let end = UnixMillis(*end);
            checkup.take(HealthResult { start: end, end, exit_code: *exit_code, output: String::new() });
            checkup.health.status
        };
        results.iter().map(take).collect()
    }

    #[test]
    fn enough_failures_in_a_row_make_it_unhealthy_and_one_success_heals() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        let mut checkup = checkup(0);
        assert_eq!(after(&mut checkup, &[(1030, 1), (1060, 1), (1090, 0)]), [Starting, Unhealthy, Healthy]);
        assert_eq!(
            after(&mut checkup, &[(1120, 1), (1150, 0), (1180, 1), (1210, 1)]),
            [Healthy, Healthy, Healthy, Unhealthy]
        );
        assert_eq!(checkup.health.log.len(), RESULTS_KEPT);
    }

    #[test]
    fn failures_in_the_start_period_do_not_count() {
        use HealthStatus::{Starting, Unhealthy};
        let mut checkup = checkup(100);
        assert_eq!(after(&mut checkup, &[(1005, 1), (1010, 1), (1099, 1)]), [Starting; 3]);
        assert_eq!(checkup.health.failing_streak, 0);
        assert_eq!(after(&mut checkup, &[(1100, 1), (1130, 1)]), [Starting, Unhealthy]);
    }

    #[test]
    fn a_success_ends_the_start_period() {
        let mut checkup = checkup(100);
        assert_eq!(checkup.due(), UnixMillis(1005));
        after(&mut checkup, &[(1005, 0)]);
        assert_eq!(checkup.due(), UnixMillis(1035));
        assert_eq!(after(&mut checkup, &[(1035, 1), (1065, 1)]), [HealthStatus::Healthy, HealthStatus::Unhealthy]);
    }

    #[test]
    fn another_daemon_goes_on_where_the_last_one_stopped() {
        let mut first = checkup(0);
        after(&mut first, &[(1030, 0), (1060, 1)]);
        let mut second = Checkup::new(first.check.clone(), first.started_at, first.health.clone());
        assert_eq!(second.due(), UnixMillis(1090));
        assert_eq!(after(&mut second, &[(1090, 1)]), [HealthStatus::Unhealthy]);
    }
}
