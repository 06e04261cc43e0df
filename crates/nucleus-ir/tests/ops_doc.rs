//! `docs/ops.md` is what the op table says.

use std::path::Path;

use nucleus_ir::ops::op_table;
use nucleus_ir::ops_doc::markdown;

#[test]
fn the_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/ops.md");
    let generated = markdown();
    if std::env::var_os("NUCLEUS_BLESS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        page == generated,
        "docs/ops.md differs from the op table; `NUCLEUS_BLESS=1 cargo test -p nucleus-ir --test ops_doc` writes it anew"
    );
}

#[test]
fn every_op_is_there() {
    let page = markdown();
    for row in op_table() {
        assert!(page.contains(&format!("`{}(", row.name)), "{}", row.name);
    }
}
