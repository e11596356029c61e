fn main() -> std::process::ExitCode {
    agentbox_service::main("provisioner", agentbox_provisioner::run)
}
