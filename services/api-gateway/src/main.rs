fn main() -> std::process::ExitCode {
    agentbox_service::main("api-gateway", agentbox_api_gateway::run)
}
