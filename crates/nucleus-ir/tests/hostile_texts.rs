//! Large hostile texts end in a bounded time, on a small stack.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nucleus_ir::ast::Module;
use nucleus_ir::source::SourceMap;
use nucleus_ir::{parse, render, verify};

/// A tenth of what is accepted, so that the test is quick; nothing here may take more than linear time.
const BYTES: usize = 1 << 20;

fn run(text: String) -> (usize, usize) {
    let mut sources = SourceMap::new();
    let file = sources.add("hostile.ir", text);
    let (module, mut diagnostics) = parse(&sources, file);
    diagnostics.extend(verify::<Module>(&module, &HashMap::new()));
    let shown = render(&sources, &diagnostics, false);
    (diagnostics.len(), shown.len())
}

#[test]
fn time_and_output_are_bounded() {
    let names: String = (0..BYTES / 16).map(|i| format!("const A{i} = A{i};")).collect();
    let unknown: String = (0..BYTES / 16).map(|i| format!("let a{i} = b{i};")).collect();
    let calls: String = (0..BYTES / 32).map(|i| format!("fn g{i}() {{ g{}(); g0(); h() }}", i + 1)).collect();
    let texts = [
        "a".repeat(BYTES),
        "\"".repeat(BYTES),
        "\"{".repeat(BYTES / 2),
        "\"{\n".repeat(BYTES / 3),
        "(".repeat(BYTES),
        "{[(".repeat(BYTES / 3),
        "é".repeat(BYTES / 2),
        "#a".repeat(BYTES / 2),
        "\u{0}".repeat(BYTES),
        "fn f(".repeat(BYTES / 5),
        "let ".repeat(BYTES / 4),
        "}".repeat(BYTES),
        format!("fn f() {{ {}", "a;".repeat(BYTES / 2)),
        format!("fn f() {{ {} }}", "a;".repeat(BYTES / 2)),
        format!("fn f() {{ {} }}", "{}".repeat(BYTES / 2)),
        format!("const A = [{}];", "1,".repeat(BYTES / 2)),
        format!("const A = \"{}\";", "{a}".repeat(BYTES / 3)),
        format!("use std {{ {} }};", "a,".repeat(BYTES / 2)),
        format!("fn f({}) {{ }}", "a: int,".repeat(BYTES / 7)),
        format!("fn f() {{ {unknown} }}"),
        "// comment".repeat(BYTES / 10),
        names,
        calls,
    ];
    let hostile = move || {
        for text in texts {
            let start: String = text.chars().take(20).collect();
            let begin = Instant::now();
            let (diagnostics, shown) = run(text);
            let time = begin.elapsed();
            eprintln!("{start}: {time:?} {diagnostics} {shown}");
            assert!(
                diagnostics <= 100 && shown < 1 << 20,
                "{start}: {diagnostics} diagnostics, {shown} bytes"
            );
            assert!(time < Duration::from_secs(20), "{start}: {time:?}");
        }
    };
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(hostile);
    assert!(thread.unwrap().join().is_ok());
}
