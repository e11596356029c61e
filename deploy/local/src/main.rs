//! `agentbox-local`: AgentBox on this machine.

fn main() -> std::process::ExitCode {
    agentbox_local::cli::main()
}
