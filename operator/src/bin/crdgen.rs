//! Prints the custom resource definition: `crdgen > crds/disaggdeployments.disagg.dev.yaml`.

use std::io::Write as _;

fn main() -> anyhow::Result<()> {
    let yaml = disagg_operator::crd_yaml()?;
    std::io::stdout().write_all(yaml.as_bytes())?;
    Ok(())
}
