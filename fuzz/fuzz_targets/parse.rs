//! Parser, verifier, diagnostics and printer, from arbitrary bytes.
//!
//! Seeds: `ir-specs/*.ir`.

#![no_main]

use std::collections::HashMap;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use nucleus_ir::ast::Module;
use nucleus_ir::diagnostics::has_errors;
use nucleus_ir::printer::print;
use nucleus_ir::source::SourceMap;
use nucleus_ir::{parse, render, verify};

/// The modules that a text can use.
fn imports() -> &'static HashMap<String, Module> {
    static IMPORTS: OnceLock<HashMap<String, Module>> = OnceLock::new();
    IMPORTS.get_or_init(|| {
        let mut sources = SourceMap::new();
        let file = sources.add("std.ir", include_str!("../../ir-specs/std.ir"));
        HashMap::from([("std".to_owned(), parse(&sources, file).0)])
    })
}

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut sources = SourceMap::new();
    let file = sources.add("fuzz.ir", text.as_ref());
    let (module, mut diagnostics) = parse(&sources, file);
    let parsed = !has_errors(&diagnostics);
    diagnostics.extend(verify(&module, imports()));
    let shown = render(&sources, &diagnostics, data.first().is_some_and(|byte| byte % 2 == 0));
    assert_eq!(shown.is_empty(), diagnostics.is_empty());
    if parsed {
        let printed = print(&module);
        let file = sources.add("printed.ir", printed);
        let (again, diagnostics) = parse(&sources, file);
        assert!(diagnostics.is_empty() && again == module, "{}", render(&sources, &diagnostics, false));
    }
});
