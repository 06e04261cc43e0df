use std::collections::HashMap;

use super::*;
use crate::ast::Module;
use crate::diagnostics::has_errors;
use crate::parser::parse;
use crate::source::SourceMap;

fn parsed(text: &str) -> Module {
    let mut sources = SourceMap::new();
    let file = sources.add("test.ir", text);
    let (module, diagnostics) = parse(&sources, file);
    assert!(diagnostics.is_empty(), "{text}\n{diagnostics:?}");
    module
}

fn std_module() -> Module {
    parsed(include_str!("../../../../ir-specs/std.ir"))
}

fn found(text: &str) -> Vec<Diagnostic> {
    let imports = HashMap::from([("std".to_owned(), std_module())]);
    verify(&parsed(text), &imports)
}

#[test]
fn the_definitions_are_clean() {
    assert_eq!(verify::<Module>(&std_module(), &HashMap::new()), []);
    assert_eq!(found(include_str!("../../../../ir-specs/nucleus_image.ir")), []);
}

/// A text, its messages, and the help of the first one.
type Case = (&'static str, &'static [&'static str], Option<&'static str>);

const ERRORS: &[Case] = &[
    // 1. definitions
    ("const A = 1; const A = 2;", &["`A` is defined twice"], None),
    ("config { a: int; } dim a;", &["`a` is defined twice"], None),
    ("fn matmul() { }", &["`matmul` is an op of the language and cannot be defined again"], None),
    ("fn weight() { }", &["`weight` is a builtin function and cannot be defined again"], None),
    ("use std { liner };", &["module `std` has no `liner`"], Some("it has `linear`")),
    ("use std { silu }; fn silu() { }", &["`silu` is defined twice"], None),
    // 2. hiding
    ("fn f(x: tensor, x: int) { x; }", &["`x` is defined already, as a parameter"], None),
    ("const D = 1; fn f(D: int) { D; }", &["`D` is defined already, as a constant"], None),
    ("fn f(x: [K]) { let K = x; }", &["`K` is defined already, as a dim"], None),
    (
        "fn f() { let a = 1; { let a = 2; a; } a; }",
        &["`a` is defined already, as a value"],
        Some("give it another name, or declare a `var` and assign it"),
    ),
    ("entry e(x: [2] per step) -> (y: [2], y: [2]) { (x, x) }", &["output `y` is defined twice"], None),
    // 3. names
    (
        "const A = num_layer; config { num_layers: int; }",
        &["there is no value `num_layer`"],
        Some("there is `num_layers`"),
    ),
    ("fn f(x: [K]) -> [K, M] { x }", &["there is no value `M`"], None),
    ("fn f(x: [K], n: int = K) { x + n; }", &["there is no value `K`"], None),
    ("fn f(x: [2 * K]) { x; }", &["there is no value `K`"], None),
    ("entry e(x: [N] per step) -> (y: [N]) { x }", &["there is no value `N`", "there is no value `N`"], None),
    ("fn f() { { let a = 1; a; } a }", &["there is no value `a`"], None),
    ("fn f() { for i in 0..2 { i; } i }", &["there is no value `i`"], None),
    ("fn f() { let a = a; a }", &["there is no value `a`"], None),
    ("use std { silu }; fn f() { silu }", &["`silu` is a function, not a value"], None),
    ("fn f() { matmul }", &["there is no value `matmul`"], Some("there is an op: `matmul(…)`")),
    ("fn f(x: tensor) { sillu(x) }", &["there is no function `sillu`"], None),
    (
        "use std { silu }; fn f(x: tensor) { sillu(x) + silu(x) }",
        &["there is no function `sillu`"],
        Some("there is a function `silu`"),
    ),
    (
        "use std { silu }; fn f(x: tensor) { silu(x) + ones(x) }",
        &["there is no function `ones`"],
        Some("`std` has it: add it to `use std { … }`"),
    ),
    (
        "fn f(x: tensor) { mat_mul(x, x) }",
        &["there is no function `mat_mul`"],
        Some("there is an op `matmul`"),
    ),
    ("fn f(x: tensor) { x(1) }", &["`x` is a parameter, not a function"], None),
    ("const A = 1; fn f() { A(1) }", &["`A` is a constant, not a function"], None),
    ("fn f(s: string) { \"{s}.{t}\" }", &["there is no value `t`"], None),
    // 4. order
    ("const A = B; const B = 1;", &["constant `B` is used before it is known"], None),
    ("const A = A;", &["constant `A` is used before it is known"], None),
    (
        "const A = f(); fn f() { B } const B = 1;",
        &["constant `A` needs constant `B` before it is known"],
        None,
    ),
    (
        "const A = f(); fn f() { g() } fn g() { h(A) } fn h(x: int) { x }",
        &["functions use one another in a circle: `A` → `f` → `g` → `A`"],
        None,
    ),
    ("config { a: int = b; b: int = 1; }", &["config key `b` is used before its value is known"], None),
    ("config { a: int = D; } const D = 1;", &["`D` is a constant; a config can use only its own keys"], None),
    ("config { a: [int; B]; } dim B;", &["`B` is a dim; a config can use only its own keys"], None),
    (
        "config { a: int = f(); } fn f() { 1 }",
        &["`f` is a function of this module; a config cannot call it"],
        None,
    ),
    // 5. calls
    ("fn f(a: int) { a; } fn g() { f(1, 2); }", &["function `f` takes 1 argument, given 2"], None),
    ("fn f(a: int, b: int) { a + b; } fn g() { f(); }", &["function `f` needs `a`, `b`"], None),
    ("fn f(a: int) { a; } fn g() { f(1, a = 2); }", &["parameter `a` of function `f` is given twice"], None),
    (
        "fn f(a: int) { a; } fn g() { f(a = 1, a = 2); }",
        &["parameter `a` of function `f` is given twice"],
        None,
    ),
    (
        "use std { linear }; fn f(x: tensor) { linear(x, \"a\", out = 2, bais = true) }",
        &["function `linear` has no parameter `bais`"],
        Some("there is a parameter `bias`"),
    ),
    ("fn f(x: tensor) { split(x) }", &["builtin function `split` needs `n`"], None),
    ("fn f(x: tensor) { max(x, x, x) }", &["builtin function `max` takes 2 arguments, given 3"], None),
    ("fn f(x: tensor) { matmul(x) }", &["op `matmul` takes 2 operands, given 1"], None),
    ("fn f(x: tensor) { matmul(x, b = x) }", &["op `matmul` takes 2 operands, given 1"], None),
    (
        "fn f(x: tensor) { matmul(x, x, true, true, true) }",
        &["op `matmul` takes 2 operands and 2 attributes, given 5"],
        None,
    ),
    ("fn f(x: tensor) { exp(x, 1) }", &["builtin function `exp` takes 1 argument, given 2"], None),
    ("fn f(x: tensor) { rsqrt(x, 1) }", &["op `rsqrt` takes 1 operand, given 2"], None),
    ("fn f(x: tensor) { concat(x, x) }", &["op `concat` needs attribute `axis`"], None),
    ("fn f(x: tensor) { concat(axis = 1); x; }", &["op `concat` takes 1 or more operands, given 0"], None),
    ("fn f(x: tensor) { slice(x) }", &["op `slice` needs attributes `axis`, `start`, `end`"], None),
    (
        "fn f(x: tensor) { attention(x, x, x, x, 1.0) }",
        &["op `attention` takes 3 or 4 operands, given 5"],
        Some("the attributes of this op are given by name"),
    ),
    (
        "fn f(x: tensor) { reduce_sum(x, axes = 1) }",
        &["op `reduce_sum` has no attribute `axes`"],
        Some("there is an attribute `axis`"),
    ),
    (
        "fn f(x: tensor) { reduce_sum(x, 1, axis = 1) }",
        &["attribute `axis` of op `reduce_sum` is given twice"],
        None,
    ),
    ("entry e(x: [2] per step) -> (y: [2]) { x } fn f() { e() }", &["entry `e` needs `x`"], None),
    // 6. assignment
    ("fn f() { let a = 1; a = 2; a }", &["value `a` cannot be assigned"], Some("declare it with `var a`")),
    ("fn f(a: int) { a = 2; a }", &["parameter `a` cannot be assigned"], None),
    ("fn f() { for i in 0..2 { i = 1; } }", &["loop variable `i` cannot be assigned"], None),
    ("fn f() { a = 2; }", &["there is no variable `a`"], Some("declare it with `var a = …;`")),
    ("dim B; fn f() { B = 2; }", &["`B` is a dim and cannot be assigned"], None),
    // 7. recursion
    ("fn f() { f() }", &["function `f` calls itself"], None),
    (
        "fn a() { b() } fn b() { c() } fn c() { a() }",
        &["functions use one another in a circle: `a` → `b` → `c` → `a`"],
        None,
    ),
    // 8. leading axes
    (
        "entry e(x: [..., 2] per step) -> (y: [2]) { x }",
        &["the type of an input cannot begin with `...`"],
        None,
    ),
    // 9. values
    (
        "fn f(x: tensor) -> tensor { x; }",
        &["the body of function `f` has no value"],
        Some("a block's value is its last expression, without `;`"),
    ),
    ("entry e(x: [2] per step) -> (y: [2]) { let _z = x; }", &["the body of entry `e` has no value"], None),
    (
        "entry e(x: [2] per step) -> (y: [2], z: [2]) { (x, x, x) }",
        &["entry `e` has 2 results, its body gives a tuple of 3"],
        None,
    ),
    (
        "fn f(x: tensor) -> [2] { (x, x) }",
        &["function `f` has one result, its body gives a tuple of 2"],
        None,
    ),
];

#[test]
fn every_invariant_is_checked() {
    for (text, messages, help) in ERRORS {
        let diagnostics = found(text);
        assert!(diagnostics.iter().all(Diagnostic::is_error), "{text}: {diagnostics:?}");
        let given: Vec<&str> = diagnostics.iter().map(|diagnostic| diagnostic.message.as_str()).collect();
        assert_eq!(given, *messages, "{text}");
        if let Some(help) = help {
            let note = crate::diagnostics::Note::Help((*help).to_owned());
            assert_eq!(diagnostics[0].notes, [note], "{text}");
        }
        assert!(diagnostics.iter().all(|diagnostic| diagnostic.span().is_some()), "{text}");
    }
}

#[test]
fn unused_names_are_warned_of() {
    for (text, messages) in [
        ("use std { silu, ones }; fn f() { ones([1]) }", vec!["imported name `silu` is not used"]),
        ("fn f(x: tensor, _y: int) { }", vec!["parameter `x` is not used"]),
        ("fn f() { let a = 1; let _b = 2; let _ = 3; let _ = 4; }", vec!["value `a` is not used"]),
        ("fn f() { var a = 1; a = 2; }", vec!["variable `a` is not used"]),
        (
            "fn f(x: tensor) { let (a, b) = split(x, 2); let (c, d) = split(x, 2); c }",
            vec!["value `a` is not used"],
        ),
        ("fn f() { let w = weight(\"w\", [1]); for i in 0..2 { } }", vec![]),
        ("fn f(x: [K], n: int = 3, m: int = n + 1) { x + m }", vec![]),
        ("entry e(x: [2] per step, y: [2] per step) -> (z: [2]) { x }", vec!["input `y` is not used"]),
        ("fn f(x: tensor, axis: int) { reduce_sum(x, axis) }", vec![]),
    ] {
        let diagnostics = found(text);
        assert!(!has_errors(&diagnostics), "{text}: {diagnostics:?}");
        let given: Vec<String> = diagnostics.into_iter().map(|diagnostic| diagnostic.message).collect();
        assert_eq!(given, messages, "{text}");
    }
}

#[test]
fn entries_can_be_called_and_optional_inputs_left_out() {
    let text = "
        entry e(x: [2] per step, m: bool[2] per step optional = true) -> (y: [2]) { select(m, x, -x) }
        entry f(x: [2] per step) -> (y: [2]) { e(x) }";
    assert_eq!(found(text), []);
}

#[test]
fn a_module_that_is_missing_gives_every_name() {
    assert_eq!(found("use other { f, g }; const A = g; fn h() { f(1, 2, x = A) }"), []);
}

#[test]
fn reports_are_limited() {
    let text: String = (0..1000).map(|i| format!("const A{i} = missing{i};\n")).collect();
    assert_eq!(found(&text).len(), MAX_REPORTED);
    let text: String = (0..1000).map(|i| format!("fn g{i}(x: int) {{ }}\n")).collect();
    assert_eq!(found(&text).len(), MAX_REPORTED);
}

#[test]
fn a_long_chain_of_calls_needs_no_stack() {
    let mut text: String = (0..20_000).map(|i| format!("fn g{i}() {{ g{}() }}\n", i + 1)).collect();
    text.push_str("fn g20000() { 1 }\n");
    assert_eq!(found(&text), []);
    let text = text.replace("{ 1 }", "{ g0() }");
    assert_eq!(found(&text).len(), 1);
}
