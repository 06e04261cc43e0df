use super::*;
use crate::ast::{BinaryOperator, ExprKind, Item, Statement, StringPart};

fn parse_text(text: &str) -> (Module, Vec<Diagnostic>) {
    let mut sources = SourceMap::new();
    let file = sources.add("test.ir", text);
    parse(&sources, file)
}

fn messages(text: &str) -> Vec<String> {
    parse_text(text).1.into_iter().map(|diagnostic| diagnostic.message).collect()
}

fn good(text: &str) -> Module {
    let (module, diagnostics) = parse_text(text);
    assert!(diagnostics.is_empty(), "{text}\n{diagnostics:?}");
    module
}

fn value(text: &str) -> ExprKind {
    match good(&format!("const X = {text};")).items.remove(0) {
        Item::Const { value, .. } => value.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definitions_parse() {
    let std = good(include_str!("../../../../ir-specs/std.ir"));
    assert!(std.items.len() > 10);
    good(include_str!("../../../../ir-specs/nucleus_image.ir"));
}

#[test]
fn precedence_and_association() {
    use BinaryOperator::{Add, Mul, Sub};
    let ExprKind::Binary(Sub, left, _) = value("1 - 2 - 3") else { panic!() };
    assert!(matches!(left.kind, ExprKind::Binary(Sub, ..)));
    let ExprKind::Binary(Add, _, right) = value("a + b * c") else { panic!() };
    assert!(matches!(right.kind, ExprKind::Binary(Mul, ..)));
    let ExprKind::Binary(BinaryOperator::Coalesce, _, right) = value("a ?? b || c == d + 1") else {
        panic!()
    };
    assert!(matches!(right.kind, ExprKind::Binary(BinaryOperator::Or, ..)));
    assert_eq!(value("(((a)))"), ExprKind::Name("a".to_owned()));
    assert!(matches!(value("(a,)"), ExprKind::Tuple(items) if items.len() == 1));
    assert!(matches!(value("-a[0]"), ExprKind::Unary(..)));
}

#[test]
fn words_of_the_grammar_stay_names() {
    let text = "fn f(at: int, per: int, optional: int, scale: int, dim: int, use: int, config: int, entry: int, in: int) {
        let x = at + per + optional + scale + dim + use + config + entry + in;
        f(at = 1, per = 2, dim = x);
    }";
    assert_eq!(good(text).items.len(), 1);
}

#[test]
fn strings_have_escapes_and_interpolations() {
    let ExprKind::String(parts) = value(r#""a\"\\\n\t\{\}{x + 1}{f("{y}")}é""#) else { panic!() };
    assert_eq!(parts.len(), 4);
    assert_eq!(parts[0], StringPart::Text("a\"\\\n\t{}".to_owned()));
    let StringPart::Interpolation(sum) = &parts[1] else { panic!() };
    assert!(matches!(sum.kind, ExprKind::Binary(..)));
    // `const X = "a\"\\\n\t\{\}{` is 25 bytes long.
    assert_eq!(sum.span.range(), 25..30);
    assert_eq!(value("\"\""), ExprKind::String(Vec::new()));
}

#[test]
fn a_printed_stage_parses() {
    let text = r#"
        entry velocity(x: bf16[B, S, 64] per step, mask: bool[B, T] per prompt optional = true) -> (y: f32[]) {
            let w0 = weight("a.weight", [64, 64], bf16);
            let (v1, v2): (i32[B, E], f32[B, E]) per step = expert_choice(x, capacity = 4) at "blocks.3.attn";
            var s: [] = 1.5;
            s = s + inf;
            for i in 0..4 { s = s * 2; }
            if true { s } else if false { s } else { s }
        }"#;
    let Item::Entry(entry) = good(text).items.remove(0) else { panic!() };
    assert_eq!(entry.body.statements.len(), 5);
    let Statement::Let(binding) = &entry.body.statements[1] else { panic!() };
    assert_eq!(binding.scope.as_ref().map(|scope| scope.node.as_str()), Some("blocks.3.attn"));
    assert!(entry.body.value.is_some());
}

#[test]
fn several_errors_in_one_run() {
    let text = "
        config { a int; b: real; c: int = 1; }
        fn f(x: [B]) -> tensor { let y = ; let = 3 let z = x +; f(x; 1 }
        const = 4;
        entry e(x: [B]) -> (y: [B]) { x }
        fn g(x: ) -> tensor { let y = x; y }
        const OK = 1;
    ";
    let found = messages(text);
    let expected = [
        "expected `:`, found `int`",
        "expected a config type (`int`, `float`, `bool`, `string` or a list of them), found `real`",
        "expected an expression, found `;`",
        "expected a name, found `=`",
        "expected an expression, found `;`",
        "expected `,` or `)`, found `;`",
        "expected the name of a constant, found `=`",
        "expected `per` and a rate, found `)`",
        "expected a type, found `)`",
    ];
    assert_eq!(found, expected);
    let (module, _) = parse_text(text);
    assert!(matches!(module.items.last(), Some(Item::Const { name, .. }) if name.node == "OK"));
}

#[test]
fn single_mistakes_give_single_errors() {
    for (text, message) in [
        ("const A = 1", "expected `;`, found the end of the text"),
        ("const let = 1;", "expected the name of a constant, found the keyword `let`"),
        ("const f32 = 1;", "`f32` is an element type and cannot be a name"),
        ("const A = 1 < 2 < 3;", "comparisons cannot be chained"),
        ("const A = 99999999999999999999;", "the integer does not fit 64 bits"),
        ("const A = 1e999;", "the float does not fit binary64"),
        ("const A = 12ab;", "expected an expression, found a number"),
        ("const A = \"abc;\nconst B = 1;", "a string is not closed on its line"),
        ("const A = \"\\q\";", "unknown escape in a string"),
        ("const A = \"{}\";", "expected an expression, found the end of the interpolation"),
        ("const A = \"{a b}\";", "expected `}`, found `b`"),
        ("const A = bf16(1);", "`bf16` is an element type; convert with `cast(x, bf16)`"),
        ("const A = f(a = 1, 2);", "an argument by position stands behind an argument by name"),
        ("fn f(x: [K, ...]) { }", "expected a size, found `...`"),
        ("fn f() { let (a, b): ([K]) = c; }", "2 names have 1 types"),
        ("fn f() { let x = 1 at \"{a}\"; }", "this string must be plain: it takes no `{…}`"),
        ("fn f() { x", "expected `;` or `}`, found the end of the text"),
        ("fn f() {", "expected `}`, found the end of the text"),
        ("fn f() { g()", "expected `;` or `}`, found the end of the text"),
        ("entry e(m: [B] per step optional) -> (y: [B]) { m }", "the optional input `m` has no value"),
        ("require a;", "expected `,` and a message, found `;`"),
        (
            "let x = 1;",
            "expected an item (`use`, `config`, `const`, `dim`, `require`, `fn` or `entry`), found `let`",
        ),
    ] {
        let found = messages(text);
        assert_eq!(found, [message], "{text}");
    }
}

#[test]
fn nesting_is_limited_on_a_small_stack() {
    let deep = 100_000;
    let texts = [
        format!("const A = {};", "(".repeat(deep)),
        format!("const A = {}1{};", "[".repeat(deep), "]".repeat(deep)),
        format!("const A = {}1;", "-".repeat(deep)),
        format!("const A = 1{};", " + 1".repeat(deep)),
        format!("const A = x{};", "[0]".repeat(deep)),
        format!("fn f() {}", "{".repeat(deep)),
        format!("fn f() {{ {} }}", "if x { y } else ".repeat(deep)),
        format!("fn f() {{ {} }}", "scope \"a\" { if x {".repeat(deep)),
        format!("fn f(x: {}) {{ }}", "[".repeat(deep)),
        format!("config {{ x: {}int; }}", "[".repeat(deep)),
        format!("const A = {};", "f(".repeat(deep)),
        format!("const A = {};", "\"{".repeat(deep)),
        format!("const A = {};", "1 ?? -(".repeat(deep)),
    ];
    let parse_all = move || {
        for text in texts {
            let found = messages(&text);
            assert!(!found.is_empty() && found.len() <= MAX_ERRORS, "{:.60}: {found:?}", text);
            // The last kind of text is a string that is not closed; the others are too deep.
            if !text.contains('"') || text.contains("scope") {
                assert!(found.iter().any(|message| message.contains("nested more than")), "{found:?}");
            }
        }
    };
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(parse_all);
    assert!(thread.unwrap().join().is_ok());
}

#[test]
fn strings_in_strings_are_limited_too() {
    let text = format!("const A = {}1{};", "\"{".repeat(1000), "}\"".repeat(1000));
    assert_eq!(messages(&text), [format!("the text is nested more than {MAX_DEPTH} deep")]);
}

#[test]
fn errors_and_sizes_are_limited() {
    assert_eq!(messages(&"const = 1;\n".repeat(1000)).len(), MAX_ERRORS);
    assert_eq!(messages(&"#\n".repeat(1000)).len(), MAX_ERRORS);
    let found = messages(&" ".repeat(MAX_SOURCE_BYTES + 1));
    assert_eq!(found, ["the text has 16777217 bytes, more than 16 MiB"]);
    assert!(parse(&SourceMap::new(), FileId(3)).1[0].is_error());
    assert_eq!(parse_text("").0.items.len(), 0);
}

#[test]
fn a_deep_but_legal_text_is_accepted() {
    good(&format!("const A = {}1{};", "(".repeat(100), ")".repeat(100)));
    good(&format!("const A = 1{};", " + 1".repeat(100)));
}
