//! `edgectl`: the command line of the cluster. All of it is in `orchestrator::cli`.

use orchestrator::cli::{Out, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("edgectl: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut out = Out::standard();
    let code = runtime.block_on(run(std::env::args_os(), &mut out));
    // A thread may still wait for standard input, which nobody needs any more.
    runtime.shutdown_background();
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))
}
