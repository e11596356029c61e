fn main() -> std::process::ExitCode {
    agentbox_service::main("webhooks", agentbox_webhooks::run)
}
