//! `shim shim <dir>`: the shim of a container as a program of its own, for tests of the runtime that need no whole `edged`.

fn main() {
    orchestrator::runtime::shim::main()
}
