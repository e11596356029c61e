fn main() -> std::process::ExitCode {
    agentbox_service::main("scheduler", agentbox_scheduler::run)
}
