//! crdgen
fn main(){}
