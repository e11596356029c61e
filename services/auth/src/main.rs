fn main() -> std::process::ExitCode {
    agentbox_service::main("auth", agentbox_auth::run)
}
