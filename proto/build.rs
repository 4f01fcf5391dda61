//! Generates the wire types with protox, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 4] = [
        "proto/disagg/v1/common.proto",
        "proto/disagg/v1/worker.proto",
        "proto/disagg/v1/prefill.proto",
        "proto/disagg/v1/transfer.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        // Tokenizer files are reference-counted buffers, not copies.
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
