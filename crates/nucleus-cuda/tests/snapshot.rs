//! One small kernel as it is emitted, so that a change of the emitter can be read as a change of its result. The prelude, which all kernels
//! share, is left out.
//!
//! `NUCLEUS_BLESS=1 cargo test -p nucleus-cuda --test snapshot` rewrites the file.

use std::fs;
use std::path::Path;

use nucleus_cuda::{Architecture, Facts, kernel_source};
use nucleus_plan::KernelId;
use nucleus_plan::text::parse_plan;

const PLAN: &str = include_str!("snapshots/map.plan");

#[test]
fn a_map_is_emitted_as_stored() {
    let plan = parse_plan(PLAN).unwrap();
    let id = KernelId(0);
    let source = kernel_source(plan.kernel(id), &Facts::of(&plan, id), Architecture::SM80).unwrap();
    let start = source.text.find("struct Arguments {").unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/map.cu");
    if std::env::var_os("NUCLEUS_BLESS").is_some() {
        fs::write(&path, &source.text[start..]).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap();
    assert!(
        stored == source.text[start..],
        "the unit differs from {}; look at it, and write it anew with NUCLEUS_BLESS=1:\n{}",
        path.display(),
        &source.text[start..]
    );
}
