//! `parse(print(module)) == module`, for random trees and for the definitions.

use nucleus_ir::ast::{
    BinaryOperator, Block, ConfigKey, ConfigType, Entry, EntryInput, EntryOutput, Expr, ExprKind, Function,
    Item, Let, Module, Name, Param, ParamType, Require, ResultType, SpanOnly, Statement, StringPart,
    TensorPattern, UnaryOperator,
};
use nucleus_ir::printer::print;
use nucleus_ir::source::{SourceMap, Span, Spanned};
use nucleus_ir::{DType, Diagnostic, Float, Rate, parse, render};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn parse_text(text: &str) -> Result<Module, String> {
    let mut sources = SourceMap::new();
    let file = sources.add("printed.ir", text);
    let (module, diagnostics): (Module, Vec<Diagnostic>) = parse(&sources, file);
    if diagnostics.is_empty() { Ok(module) } else { Err(render(&sources, &diagnostics, false)) }
}

fn word() -> impl Strategy<Value = String> {
    const CONTEXTUAL: [&str; 12] =
        ["at", "per", "optional", "dim", "use", "config", "entry", "in", "int", "tensor", "step", "_"];
    let reserved = [
        "const", "fn", "let", "var", "for", "if", "else", "scope", "require", "true", "false", "null", "inf",
        "nan",
    ];
    let free = "[a-z_][a-zA-Z0-9_]{0,9}".prop_filter("reserved", move |word| {
        !reserved.contains(&word.as_str()) && DType::from_name(word).is_none()
    });
    prop_oneof![1 => proptest::sample::select(&CONTEXTUAL[..]).prop_map(str::to_owned), 4 => free]
}

fn name() -> impl Strategy<Value = Name> {
    word().prop_map(|word| Spanned::new(word, Span::default()))
}

fn expr_of(kind: ExprKind) -> Expr {
    Expr { kind, span: Span::default() }
}

fn float() -> impl Strategy<Value = Float> {
    let number = any::<f64>().prop_map(f64::abs).prop_filter("a number", |value| value.is_finite());
    prop_oneof![number, Just(f64::INFINITY), Just(f64::NAN), 0.0..2.0f64].prop_map(Float)
}

fn binary_operator() -> impl Strategy<Value = BinaryOperator> {
    use BinaryOperator::*;
    proptest::sample::select(vec![
        Coalesce,
        Or,
        And,
        Equal,
        NotEqual,
        Less,
        LessEqual,
        Greater,
        GreaterEqual,
        Add,
        Sub,
        Mul,
        Div,
        Rem,
    ])
}

fn leaf() -> impl Strategy<Value = Expr> {
    prop_oneof![
        (0..=i64::MAX).prop_map(ExprKind::Int),
        (0..10i64).prop_map(ExprKind::Int),
        float().prop_map(ExprKind::Float),
        any::<bool>().prop_map(ExprKind::Bool),
        Just(ExprKind::Null),
        word().prop_map(ExprKind::Name),
        proptest::sample::select(&DType::ALL[..]).prop_map(ExprKind::DType),
        "\\PC{0,8}|[\"{}\\\\\n\t]{0,4}".prop_map(|text| {
            ExprKind::String(if text.is_empty() { Vec::new() } else { vec![StringPart::Text(text)] })
        }),
    ]
    .prop_map(expr_of)
}

fn string_parts(expr: BoxedStrategy<Expr>) -> impl Strategy<Value = Vec<StringPart>> {
    vec((expr, "[a-z .{}\"\\\\]{1,6}", any::<bool>()), 1..3).prop_map(|items| {
        let mut parts = Vec::new();
        for (expr, text, has_text) in items {
            parts.push(StringPart::Interpolation(expr));
            if has_text {
                parts.push(StringPart::Text(text));
            }
        }
        parts
    })
}

fn expr() -> BoxedStrategy<Expr> {
    leaf()
        .prop_recursive(4, 48, 4, |inner| {
            let inner = inner.boxed();
            let boxed = inner.clone().prop_map(Box::new).boxed();
            let block = block(inner.clone());
            let if_end = option::of(block.clone().prop_map(ExprKind::Block));
            let conditional = (boxed.clone(), block.clone(), if_end).prop_map(|(condition, then, otherwise)| {
                ExprKind::If { condition, then, otherwise: otherwise.map(|kind| Box::new(expr_of(kind))) }
            });
            let chain =
                (boxed.clone(), block.clone(), conditional.clone()).prop_map(|(condition, then, otherwise)| {
                    ExprKind::If { condition, then, otherwise: Some(Box::new(expr_of(otherwise))) }
                });
            let call = (name(), vec(inner.clone(), 0..4), vec((name(), inner.clone()), 0..3));
            let unary = prop_oneof![Just(UnaryOperator::Neg), Just(UnaryOperator::Not)];
            prop_oneof![
                1 => vec(inner.clone(), 0..5).prop_map(ExprKind::List),
                1 => vec(inner.clone(), 0..4).prop_map(ExprKind::Tuple),
                1 => (boxed.clone(), boxed.clone()).prop_map(|(list, index)| ExprKind::Index(list, index)),
                2 => call.prop_map(|(callee, args, named)| ExprKind::Call { callee, args, named }),
                1 => (unary, boxed.clone()).prop_map(|(operator, operand)| ExprKind::Unary(operator, operand)),
                5 => (binary_operator(), boxed.clone(), boxed.clone())
                    .prop_map(|(operator, left, right)| ExprKind::Binary(operator, left, right)),
                1 => string_parts(inner.clone()).prop_map(ExprKind::String),
                1 => conditional,
                1 => chain,
                1 => (boxed, block.clone()).prop_map(|(name, body)| ExprKind::Scope { name, body }),
                1 => block.prop_map(ExprKind::Block),
            ]
            .prop_map(expr_of)
        })
        .boxed()
}

fn pattern(expr: BoxedStrategy<Expr>) -> impl Strategy<Value = TensorPattern> + Clone {
    let dtype = option::of(proptest::sample::select(&DType::ALL[..]));
    (dtype, any::<bool>(), vec(expr, 0..4)).prop_map(|(dtype, leading, dims)| TensorPattern {
        dtype,
        leading,
        dims,
        span: SpanOnly::default(),
    })
}

fn rate() -> impl Strategy<Value = Rate> + Clone {
    proptest::sample::select(&Rate::ALL[..])
}

fn require(expr: BoxedStrategy<Expr>) -> impl Strategy<Value = Require> {
    (expr.clone(), expr).prop_map(|(condition, message)| Require { condition, message })
}

fn statement(expr: BoxedStrategy<Expr>) -> impl Strategy<Value = Statement> {
    let scope =
        option::of("\\PC{0,6}").prop_map(|scope| scope.map(|text| Spanned::new(text, Span::default())));
    let names = vec((name(), pattern(expr.clone())), 1..4);
    let binding = (any::<[bool; 3]>(), names, option::of(rate()), expr.clone(), scope).prop_map(
        |([mutable, tuple, typed], mut named, rate, value, scope)| {
            if !tuple {
                named.truncate(1);
            }
            let (names, types): (Vec<Name>, Vec<TensorPattern>) = named.into_iter().unzip();
            let types = if typed { types } else { Vec::new() };
            Statement::Let(Let { mutable, names, tuple, types, rate, value, scope })
        },
    );
    let body = (vec(expr.clone(), 0..2), option::of(expr.clone().prop_map(Box::new))).prop_map(
        |(statements, value)| Block {
            statements: statements.into_iter().map(Statement::Expr).collect(),
            value,
        },
    );
    prop_oneof![
        3 => binding,
        1 => (name(), expr.clone()).prop_map(|(name, value)| Statement::Assign { name, value }),
        1 => (name(), expr.clone(), expr.clone(), body)
            .prop_map(|(name, from, to, body)| Statement::For { name, from, to, body }),
        1 => require(expr.clone()).prop_map(Statement::Require),
        3 => expr.prop_map(Statement::Expr),
    ]
}

fn block(expr: BoxedStrategy<Expr>) -> BoxedStrategy<Block> {
    (vec(statement(expr.clone()), 0..3), option::of(expr.prop_map(Box::new)))
        .prop_map(|(statements, value)| Block { statements, value })
        .boxed()
}

fn param_type() -> impl Strategy<Value = ParamType> {
    let value = prop_oneof![
        Just(ParamType::AnyTensor),
        Just(ParamType::Int),
        Just(ParamType::Float),
        Just(ParamType::Bool),
        Just(ParamType::String),
    ]
    .prop_recursive(2, 3, 1, |inner| inner.prop_map(|element| ParamType::List(Box::new(element))));
    prop_oneof![value, pattern(expr()).prop_map(ParamType::Tensor)]
}

fn config_type() -> impl Strategy<Value = ConfigType> {
    let word = prop_oneof![
        Just(ConfigType::Int),
        Just(ConfigType::Float),
        Just(ConfigType::Bool),
        Just(ConfigType::String),
    ];
    let optional = |ty: ConfigType, is: bool| if is { ConfigType::Optional(Box::new(ty)) } else { ty };
    word.prop_recursive(2, 3, 1, move |inner| {
        let element = (inner, any::<bool>()).prop_map(move |(ty, is)| match ty {
            ConfigType::Optional(_) => ty,
            ty => optional(ty, is),
        });
        (element, option::of(expr().prop_map(Box::new)))
            .prop_map(|(element, length)| ConfigType::List(Box::new(element), length))
    })
    .prop_flat_map(move |ty| any::<bool>().prop_map(move |is| optional(ty.clone(), is)))
}

fn item() -> impl Strategy<Value = Item> {
    let key = (name(), config_type(), option::of(expr())).prop_map(|(name, ty, default)| ConfigKey {
        name,
        ty,
        default,
    });
    let param = (name(), param_type(), option::of(expr())).prop_map(|(name, ty, default)| Param {
        name,
        ty,
        default,
    });
    let result = prop_oneof![
        pattern(expr()).prop_map(ResultType::Tensor),
        vec(pattern(expr()), 0..3).prop_map(ResultType::Tuple),
        param_type().prop_map(|ty| match ty {
            ParamType::Tensor(ty) => ResultType::Tensor(ty),
            ty => ResultType::Value(ty),
        }),
    ];
    let function = (name(), vec(param, 0..4), option::of(result), block(expr()))
        .prop_map(|(name, params, result, body)| Function { name, params, result, body });
    let input = (name(), pattern(expr()), rate(), option::of(expr()))
        .prop_map(|(name, ty, rate, default)| EntryInput { name, ty, rate, default });
    // What is no name is written in quotes, as the gradient of a weight.
    let weight =
        "grad\\.[a-z0-9_.]{0,8}[\"{}\\\\ ü]{0,2}".prop_map(|name| Spanned::new(name, Span::default()));
    let output =
        (prop_oneof![name(), weight], pattern(expr())).prop_map(|(name, ty)| EntryOutput { name, ty });
    let entry = (name(), vec(input, 0..3), vec(output, 0..3), block(expr()))
        .prop_map(|(name, inputs, outputs, body)| Entry { name, inputs, outputs, body });
    prop_oneof![
        (name(), vec(name(), 0..12)).prop_map(|(module, names)| Item::Use { module, names }),
        vec(key, 0..3).prop_map(Item::Config),
        (name(), expr()).prop_map(|(name, value)| Item::Const { name, value }),
        vec(name(), 1..4).prop_map(Item::Dims),
        require(expr()).prop_map(Item::Require),
        function.prop_map(Item::Function),
        entry.prop_map(Item::Entry),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn printed_trees_parse_back(items in vec(item(), 1..3)) {
        let module = Module { items };
        let text = print(&module);
        match parse_text(&text) {
            Ok(parsed) => prop_assert_eq!(&parsed, &module, "{}", text),
            Err(errors) => prop_assert!(false, "{}\n{}", text, errors),
        }
        prop_assert_eq!(print(&module), text);
    }
}

fn definitions() -> [&'static str; 2] {
    [include_str!("../../../ir-specs/std.ir"), include_str!("../../../ir-specs/nucleus_image.ir")]
}

#[test]
fn definitions_parse_back() {
    for text in definitions() {
        let module = parse_text(text).unwrap();
        let printed = print(&module);
        assert_eq!(parse_text(&printed).as_ref(), Ok(&module), "{printed}");
    }
}

#[test]
fn lines_are_broken() {
    for text in definitions() {
        let printed = print(&parse_text(text).unwrap());
        for line in printed.lines() {
            let has_long_string = line.trim_start().starts_with('"');
            assert!(line.chars().count() <= 100 || has_long_string, "{line}");
            assert_eq!(line.trim_end(), line);
        }
    }
}

#[test]
fn layout_is_canonical() {
    let text = "\
use std { linear, silu };

config {
    width: int = 64;
    factors: [float; 3]? = [1.0, 2.0, -1.0];
}

const A = (1 + 2) * 3 - (4 - 5);
const B = -A[0] ?? (A + 1)[2];

dim N, M;

fn gelu(x: [..., K], approximate: bool = true) -> [..., K] {
    if approximate { x * sigmoid(1.702 * x) } else { (if true { x } else { -x } * 2) }
}

entry apply(x: bf16[N, width] per step, mask: bool[N] per prompt optional = true) -> (y: [N, 64]) {
    let (first, second): (i32[N], []) per step = split(x, 2, axis = -1) at \"blocks.{0}\";
    for i in 0..A {
        require i < width, \"layer {i} is not below {width}\";
    }
    scope \"layer.{1 + A}\" {
        first = linear(x, \"a\\tb\\{\\}\", out = width);
    }
    {
        1;
    }
    linear(
        a_long_argument_that_takes_space(x, first, second),
        another_argument_of_the_same_call + one_more_argument * that_is_long,
        name = \"and this breaks the line\",
    )
}
"
    .replace("blocks.{0}", "blocks.0");
    assert_eq!(print(&parse_text(&text).unwrap()), text);
}
