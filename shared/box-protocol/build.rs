fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .bytes(".agentbox.boxd.v1.RunInput.stdin")
        .bytes(".agentbox.boxd.v1.RunOutput.stdout")
        .bytes(".agentbox.boxd.v1.RunOutput.stderr")
        .compile_protos(&["proto/box.proto"], &["proto"])
}
