//! Generates the wire types with protox, so that no `protoc` has to be installed, and for each of them what it may hold.

use std::fmt::Write as _;
use std::path::Path;

#[path = "src/limits.rs"]
#[allow(dead_code, unreachable_pub, reason = "the crate's, too")]
mod limits;

/// `label` of a repeated field in a descriptor.
const LABEL_REPEATED: i32 = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 4] = [
        "proto/disagg/v1/common.proto",
        "proto/disagg/v1/worker.proto",
        "proto/disagg/v1/prefill.proto",
        "proto/disagg/v1/transfer.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=src/limits.rs");
    let descriptors = protox::compile(FILES, ["proto"])?;

    // Shapes of messages, see `src/bounds.rs`.
    let mut shapes = String::new();
    for message in descriptors.file.iter().flat_map(|file| &file.message_type) {
        let name = message.name();
        if !message.nested_type.is_empty() {
            return Err(format!("{name}: messages within messages and maps have no shapes yet").into());
        }
        write!(
            shapes,
            "static SHAPE_{}: Shape = Shape {{ message: {name:?}, fields: &[",
            name.to_uppercase()
        )?;
        for field in &message.field {
            let repeated = field.label == Some(LABEL_REPEATED);
            // Numbers of types as in google/protobuf/descriptor.proto.
            let kind = match field.r#type {
                Some(11) => {
                    let shape = field.type_name().rsplit('.').next().unwrap_or_default().to_uppercase();
                    format!("Message(&SHAPE_{shape})")
                }
                Some(9 | 12) => "Bytes".to_owned(),
                Some(1 | 6 | 16) => "Fixed(8)".to_owned(),
                Some(2 | 7 | 15) => "Fixed(4)".to_owned(),
                _ => "Varint".to_owned(),
            };
            if !repeated && !kind.starts_with("Message") {
                continue;
            }
            let of = |(of, field_of, _): &&(&str, &str, u32)| (*of, *field_of) == (name, field.name());
            let limit = limits::REPEATED.iter().find(of).map(|(_, _, max)| *max);
            let max = match limit {
                Some(max) if repeated => max,
                None if !repeated => 1,
                _ => return Err(format!("src/limits.rs: {name}.{} has no limit", field.name()).into()),
            };
            write!(
                shapes,
                "Field {{ number: {}, name: {:?}, kind: Kind::{kind}, max: {max} }}, ",
                field.number(),
                field.name(),
            )?;
        }
        writeln!(shapes, "] }};")?;
        writeln!(
            shapes,
            "impl Bounded for crate::v1::{name} {{ const SHAPE: &'static Shape = &SHAPE_{}; }}",
            name.to_uppercase()
        )?;
    }
    std::fs::write(Path::new(&std::env::var("OUT_DIR")?).join("shapes.rs"), shapes)?;

    tonic_prost_build::configure()
        // Tokenizer files are reference-counted buffers, not copies.
        .bytes(".")
        .codec_path("crate::codec::BoundedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
