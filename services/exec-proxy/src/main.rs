fn main() -> std::process::ExitCode {
    agentbox_service::main("exec-proxy", agentbox_exec_proxy::run)
}
