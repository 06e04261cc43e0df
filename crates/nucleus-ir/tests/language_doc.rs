//! The examples of `docs/language.md` are what the page says.

use std::collections::HashMap;

use nucleus_ir::ast::Module;
use nucleus_ir::diagnostics::has_errors;
use nucleus_ir::printer::print;
use nucleus_ir::source::SourceMap;
use nucleus_ir::{Diagnostic, parse, render, verify};

struct Example {
    line: usize,
    text: String,
    fails: bool,
}

/// The blocks tagged `nucleus` and `nucleus,error`.
fn examples() -> Vec<Example> {
    let page = include_str!("../../../docs/language.md");
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    let mut open = false;
    for (index, line) in page.lines().enumerate() {
        match line.strip_prefix("```") {
            Some(tag) if !open => {
                open = true;
                inside = tag == "nucleus" || tag == "nucleus,error";
                if inside {
                    examples.push(Example { line: index + 1, text: String::new(), fails: tag != "nucleus" });
                }
            }
            Some(_) => (open, inside) = (false, false),
            None if inside => {
                if let Some(example) = examples.last_mut() {
                    example.text.push_str(line);
                    example.text.push('\n');
                }
            }
            None => {}
        }
    }
    examples
}

fn check(sources: &mut SourceMap, name: &str, text: &str) -> (Module, Vec<Diagnostic>) {
    let std = sources.add("std.ir", include_str!("../../../ir-specs/std.ir"));
    let (std, diagnostics) = parse(sources, std);
    assert!(diagnostics.is_empty());
    let file = sources.add(name, text);
    let (module, mut diagnostics) = parse(sources, file);
    if !has_errors(&diagnostics) {
        diagnostics.extend(verify(&module, &HashMap::from([("std".to_owned(), std)])));
    }
    (module, diagnostics)
}

#[test]
fn examples_are_as_the_page_says() {
    let examples = examples();
    assert!(examples.len() > 20, "only {} examples found", examples.len());
    for example in examples {
        let mut sources = SourceMap::new();
        let name = format!("language.md:{}", example.line);
        let (module, diagnostics) = check(&mut sources, &name, &example.text);
        let shown = render(&sources, &diagnostics, false);
        if example.fails {
            let comment = example.text.lines().find_map(|line| line.strip_prefix("// error: "));
            let expected = comment.unwrap_or_else(|| panic!("{name} says no error"));
            let errors: Vec<&Diagnostic> =
                diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).collect();
            assert!(errors.iter().any(|error| error.message.contains(expected)), "{name}\n{shown}");
        } else {
            assert!(!has_errors(&diagnostics), "{name}\n{shown}");
            let mut sources = SourceMap::new();
            let file = sources.add("printed.ir", print(&module));
            assert_eq!(parse(&sources, file).0, module, "{name}");
        }
    }
}

#[test]
fn keywords_are_those_of_the_lexer() {
    let page = include_str!("../../../docs/language.md");
    let line = page.lines().find(|line| line.starts_with("- Keywords cannot be names")).unwrap();
    for word in line.split('`').nth(1).unwrap().split(' ') {
        let text = format!("const {word} = 1;");
        let mut sources = SourceMap::new();
        let file = sources.add("keyword.ir", text);
        let diagnostics = parse(&sources, file).1;
        assert_eq!(
            diagnostics[0].message,
            format!("expected the name of a constant, found the keyword `{word}`")
        );
    }
}
