fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        // The client would have a constructor `connect` beside the call `Connect`.
        .build_transport(false)
        .extern_path(
            ".agentbox.boxd.v1.FileInput",
            "::agentbox_contracts::files::FileInput",
        )
        .extern_path(
            ".agentbox.boxd.v1.FileOutput",
            "::agentbox_contracts::files::FileOutput",
        )
        .extern_path(
            ".agentbox.boxd.v1.ExecutionInput",
            "::agentbox_contracts::executions::ExecutionInput",
        )
        .extern_path(
            ".agentbox.boxd.v1.ExecutionOutput",
            "::agentbox_contracts::executions::ExecutionOutput",
        )
        .extern_path(
            ".agentbox.boxd.v1.PortInput",
            "::agentbox_contracts::ports::PortInput",
        )
        .extern_path(
            ".agentbox.boxd.v1.PortOutput",
            "::agentbox_contracts::ports::PortOutput",
        )
        .extern_path(
            ".agentbox.boxd.v1.PortList",
            "::agentbox_contracts::ports::PortList",
        )
        .bytes(".agentbox.boxd.v1.RunInput.stdin")
        .bytes(".agentbox.boxd.v1.RunOutput.stdout")
        .bytes(".agentbox.boxd.v1.RunOutput.stderr")
        .compile_protos(&["proto/box.proto"], &["proto"])
}
