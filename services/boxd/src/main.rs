fn main() -> std::process::ExitCode {
    agentbox_boxd::main(std::env::args_os())
}
