//! Config values: their types, and what is said of wrong ones.

use nucleus_ir::source::SourceMap;
use nucleus_passes::elaborate::{Config, ConfigValue, Program, elaborate};

use crate::support::{NUCLEUS_IMAGE, build};

const KEYS: &str = r#"
config {
    layers: int = 2;
    rate: float = 1;
    flag: bool = false;
    name: string = "a";
    heads: int? = null;
    factors: [float; layers] = [1, 2.5];
    axes: [int] = [];
}
dim B;
entry main(x: [B] per step) -> (r: [B]) {
    require 1 <= B, "{layers} {rate} {flag} {name} {heads} {factors} {axes}";
    x
}
"#;

/// The values of all keys, or the first line of the diagnostics.
fn values(settings: &[&str]) -> Result<String, String> {
    match build(KEYS, settings) {
        Ok(graph) => Ok(graph.constraints[0].what.clone()),
        Err(errors) => Err(errors.lines().next().unwrap_or_default().to_owned()),
    }
}

#[test]
fn values_take_the_type_of_their_key() {
    assert_eq!(values(&[]).unwrap(), "2 1.0 false a null [1.0, 2.5] []");
    let settings = ["layers=3", "rate=2", "flag=true", "name=b", "heads=4", "factors=7", "axes=[1, 2]"];
    assert_eq!(values(&settings).unwrap(), "3 2.0 true b 4 [7.0, 7.0, 7.0] [1, 2]");
    // A list may be longer than its stated length.
    assert_eq!(values(&["factors=[1, 2, 3]"]).unwrap(), "2 1.0 false a null [1.0, 2.0, 3.0] []");
}

#[test]
fn wrong_values_name_key_expected_and_given() {
    let error = |setting: &str| values(&[setting]).unwrap_err();
    assert_eq!(error("layers=2.0"), "error: config key `layers` must be an int, given 2.0");
    assert_eq!(error("layers=null"), "error: config key `layers` must be an int, given null");
    assert_eq!(error("rate=fast"), "error: config key `rate` must be a float, given \"fast\"");
    assert_eq!(error("flag=1"), "error: config key `flag` must be a bool, given 1");
    assert_eq!(
        error("name=[1]"),
        "error: config key `name` must be a string of at most 65536 bytes, given [1]"
    );
    assert_eq!(error("heads=true"), "error: config key `heads` must be an int or null, given true");
    assert_eq!(error("factors=[1]"), "error: config key `factors` has 1 elements, needs at least 2");
    assert_eq!(
        error("factors=[1, x]"),
        "error: config key `factors` must be a list, each element a float, given [1, \"x\"]"
    );
    assert_eq!(
        error("factors=null"),
        "error: config key `factors` must be a list, each element a float, given null"
    );
    assert_eq!(error("axes=3"), "error: config key `axes` must be a list, each element an int, given 3");
}

#[test]
fn unknown_keys_and_missing_ones() {
    let errors = build(KEYS, &["layer=3", "colour=red", "_class_name=Model"]).unwrap_err();
    let lines: Vec<&str> = errors.lines().filter(|line| !line.trim_matches([' ', '|']).is_empty()).collect();
    let expected = [
        "error: there is no config key `_class_name`",
        "error: there is no config key `colour`",
        "error: there is no config key `layer`",
        "  = help: there is a key `layers`",
    ];
    let lines: Vec<&str> =
        lines.into_iter().filter(|line| line.starts_with("error") || line.contains("help")).collect();
    assert_eq!(lines.iter().map(|line| line.trim()).collect::<Vec<_>>(), expected.map(str::trim));
    let needs = "config { width: int; }\nentry main(x: [width] per step) -> (r: [width]) { x }";
    assert!(build(needs, &[]).unwrap_err().starts_with("error: config key `width` must be given\n"));
    assert_eq!(build(needs, &["width=3"]).unwrap().inputs[0].ty.to_string(), "f32[3]");
}

#[test]
fn keys_and_entries_are_listed() {
    let mut sources = SourceMap::new();
    let file = sources.add("keys.ir", KEYS);
    let program = Program::load(&mut sources, file, &|_| None).unwrap();
    let keys: Vec<String> = program
        .config_keys()
        .iter()
        .map(|key| format!("{}: {} = {}", key.name, key.ty, key.default.as_deref().unwrap_or("")))
        .collect();
    assert_eq!(
        keys,
        [
            "layers: int = 2",
            "rate: float = 1",
            "flag: bool = false",
            "name: string = \"a\"",
            "heads: int? = null",
            "factors: [float; layers] = [1, 2.5]",
            "axes: [int] = []",
        ]
    );
    assert_eq!(program.entries(), ["main"]);
    let errors = elaborate(&program, &Config::new(), "mian").unwrap_err();
    assert_eq!(errors[0].message, "there is no entry `mian`");
}

#[test]
fn json_objects_lose_the_keys_of_their_writer() {
    let pairs =
        [("_diffusers_version", ConfigValue::Str("0.42.1".to_owned())), ("num_layers", ConfigValue::Int(0))];
    let config = Config::from_json(pairs.map(|(key, value)| (key.to_owned(), value)));
    let mut sources = SourceMap::new();
    let file = sources.add("nucleus_image.ir", NUCLEUS_IMAGE);
    let program = Program::load(&mut sources, file, &|_| None).unwrap();
    assert!(program.warnings().is_empty(), "{:?}", program.warnings());
    let graph = elaborate(&program, &config, "velocity").unwrap();
    // What the report of the released model calls global parameters.
    assert_eq!(graph.parameter_count(), Some(42_227_712));
}
