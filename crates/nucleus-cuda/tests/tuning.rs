//! Tables of measured tiles: what is read, which entry a kernel gets, what is refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod product;

use nucleus_cuda::tiles::Device;
use nucleus_cuda::tuning::{MAX_BYTES, Problem, tile_choices, tile_table, tuned_source};
use nucleus_cuda::{
    Architecture, Facts, KernelSource, SourceError, Tile, Tuning, TuningError, distinct_kernels,
    kernel_source,
};
use nucleus_ir::DType;
use nucleus_plan::{KernelId, Plan};
use product::product;
use proptest::collection::vec;
use proptest::prelude::*;

const ARCHITECTURES: [Architecture; 2] = [Architecture::SM80, Architecture::SM90];
/// One that the model would not choose for the products below.
const TILE: Tile = Tile { rows: 64, columns: 128, depth: 32, stages: 4, warps: 8, across: 2, blocks: 2 };

/// The problem of the only kernel.
fn problem(plan: &Plan) -> Problem {
    Problem::of(plan.kernel(KernelId(0)), &Facts::of(plan, KernelId(0))).unwrap()
}

/// An entry; `device` without a name is for all devices.
fn entry(plan: &Plan, architecture: &str, device: &str, tile: Tile) -> String {
    let device =
        if device.is_empty() { String::new() } else { format!("device = \"{device}\"  # its name\n") };
    let Tile { rows, columns, depth, stages, warps, across, blocks } = tile;
    let problem = problem(plan);
    format!(
        "\n[[tile]]\narchitecture = \"{architecture}\"\n{device}kernel = \"{}\"\nshape = \"{}\"\nrows = {rows}\ncolumns = {columns}\n\
         depth = {depth}\nstages = {stages}\nwarps = {warps}\nacross = {across}\nblocks = {blocks}\n",
        problem.kernel(),
        problem.shape()
    )
}

fn parse(text: &str) -> Tuning {
    Tuning::parse(text, "`t.toml`").unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn source(plan: &Plan, architecture: Architecture, device: Option<&str>, tuning: &Tuning) -> KernelSource {
    tuned_source(plan, KernelId(0), architecture, device, tuning).unwrap()
}

fn tile(plan: &Plan, architecture: Architecture, device: Option<&str>, tuning: &Tuning) -> (Tile, bool) {
    let chosen = source(plan, architecture, device, tuning).tile.unwrap();
    (chosen.tile, chosen.given)
}

#[test]
fn a_device_gets_its_own_entry_then_that_of_its_architecture_then_the_models() {
    let plan = product("1000*T", 64, 1);
    assert_eq!(problem(&plan).shape(), "1x4096x256x64", "T is 3 at the largest sample");
    let general = Tile { rows: 32, columns: 64, depth: 64, stages: 3, warps: 2, across: 1, blocks: 4 };
    let [one, both] = [
        entry(&plan, "sm_90", "a # device", TILE),
        [entry(&plan, "sm_90", "a # device", TILE), entry(&plan, "sm_90", "", general)].concat(),
    ]
    .map(|text| parse(&text));
    let none = Tuning::default();
    let (model, given) = tile(&plan, Architecture::SM90, None, &none);
    assert!(!given && model != TILE && model != general);

    assert_eq!(tile(&plan, Architecture::SM90, Some("a # device"), &one), (TILE, true));
    assert_eq!(tile(&plan, Architecture::SM90, Some("another"), &one), (model, false));
    assert_eq!(tile(&plan, Architecture::SM90, None, &one), (model, false));
    assert_eq!(tile(&plan, Architecture::SM90, Some("a # device"), &both), (TILE, true));
    for device in [Some("another"), None] {
        assert_eq!(tile(&plan, Architecture::SM90, device, &both), (general, true));
    }
    // A device of that name and another architecture is another device.
    let other = source(&plan, Architecture::SM80, Some("a # device"), &both);
    assert_eq!(other, source(&plan, Architecture::SM80, None, &none));
}

#[test]
fn entries_are_for_one_kernel_at_one_shape() {
    let plan = product("1000*T", 64, 1);
    let tuning = parse(&entry(&plan, "sm_80", "", TILE));
    let others = [
        // Another depth is another kernel; other rows are another shape, unless they round up to the same.
        (product("1000*T", 128, 1), false),
        (product("8000*T", 64, 1), false),
        (product("1001*T", 64, 1), true),
        (product("T", 64, 1), false),
    ];
    for (other, same) in others {
        assert_eq!(tile(&other, Architecture::SM80, None, &tuning).1, same, "{}", problem(&other));
    }
}

#[test]
fn what_is_compiled_is_what_every_device_loads() {
    let plan = product("1000*T", 64, 1);
    let wide = Tile { columns: 64, warps: 4, across: 1, ..TILE };
    let table = [
        entry(&plan, "sm_90", "first", TILE),
        entry(&plan, "sm_90", "second", wide),
        entry(&plan, "sm_80", "third", TILE),
        entry(&plan, "sm_120", "not a target", TILE),
    ];
    let tuning = parse(&table.concat());
    let plans = [&plan, &plan];
    let kernels = distinct_kernels(plans, &ARCHITECTURES, &tuning).unwrap();
    // The artifact keeps what applies, in its own order.
    let kept = tuning.of_plans(plans, &ARCHITECTURES);
    assert_eq!((tuning.len(), kept.len()), (4, 3));
    let kept = Tuning::parse(&kept.to_string(), "in `m.nuc`").unwrap();
    let mut wanted = Vec::new();
    for architecture in ARCHITECTURES {
        for device in ["first", "second", "third", "any other"] {
            let loaded = source(&plan, architecture, Some(device), &kept);
            let compiled = kernels.iter().find(|kernel| kernel.source.text == loaded.text);
            let compiled = compiled.unwrap_or_else(|| panic!("nothing for {device} on {architecture}"));
            assert!(compiled.architectures.contains(&architecture), "{device} on {architecture}");
            assert_eq!(compiled.source, loaded);
            wanted.push(loaded.text);
        }
    }
    wanted.sort();
    wanted.dedup();
    assert_eq!(kernels.len(), wanted.len(), "nothing is compiled that no device loads");
}

#[test]
fn the_table_of_choices_makes_them_again() {
    let (plan, small) = (product("1000*T", 64, 3), product("T", 64, 1));
    let tuning = parse(&entry(&plan, "sm_90", "a device", TILE));
    let plans = || [&plan, &small, &plan];
    let choices = tile_choices(plans(), &ARCHITECTURES, &tuning).unwrap();
    assert_eq!(choices.len(), 2 + 1 + 2 + 2 + 1);
    assert_eq!(choices.iter().filter(|choice| choice.tile.given).count(), 2);
    let text = tile_table(&choices);
    let again = parse(&text);
    assert_eq!(again.len(), 5, "each once: {text}");
    for line in
        ["k0 of `test`, 1 launch; chosen by the model", "; chosen by a table", "# Has an entry above."]
    {
        assert!(text.contains(line), "no `{line}` in {text}");
    }
    for plan in plans() {
        for architecture in ARCHITECTURES {
            for device in [None, Some("a device"), Some("another")] {
                let (once, twice) =
                    (source(plan, architecture, device, &tuning), source(plan, architecture, device, &again));
                assert_eq!((once.text, once.functions), (twice.text, twice.functions));
                assert!(twice.tile.unwrap().given);
            }
        }
    }
}

#[test]
fn entries_of_a_later_table_come_before() {
    let plan = product("1000*T", 64, 1);
    let other = Tile { stages: 5, ..TILE };
    let mut tuning = parse(&[entry(&plan, "sm_90", "", TILE), entry(&plan, "sm_80", "", TILE)].concat());
    tuning.extend(parse(&entry(&plan, "sm_90", "", other)));
    assert_eq!(tile(&plan, Architecture::SM90, None, &tuning), (other, true));
    assert_eq!(tile(&plan, Architecture::SM80, None, &tuning), (TILE, true));
}

#[test]
fn tiles_that_a_kernel_cannot_have_are_errors_with_their_line() {
    let plan = product("1000*T", 64, 1);
    let base = Tile { rows: 128, columns: 128, depth: 32, stages: 4, warps: 4, across: 2, blocks: 2 };
    let legal = parse(&entry(&plan, "sm_80", "", base));
    assert_eq!(tile(&plan, Architecture::SM80, None, &legal), (base, true));
    // What no kernel can have is refused when the table is read.
    for (wrong, said) in [
        (Tile { rows: 48, ..base }, "`rows = 48`: expected a power of two from 16 to 256"),
        (Tile { rows: 0, ..base }, "`rows = 0`"),
        (Tile { columns: 512, ..base }, "`columns = 512`: expected a power of two from 16 to 256"),
        (Tile { depth: 8, ..base }, "`depth = 8`"),
        (Tile { stages: 1, ..base }, "`stages = 1`: expected a number from 2 to 16"),
        (Tile { stages: u32::MAX, ..base }, "`stages = 4294967295`"),
        (Tile { warps: 3, ..base }, "`warps = 3`"),
        (Tile { warps: 32, ..base }, "`warps = 32`: expected a power of two from 1 to 16"),
        (Tile { across: 8, ..base }, "`across = 8`: expected a power of two from 1 to 4"),
        (Tile { across: 0, ..base }, "`across = 0`"),
        (Tile { blocks: 0, ..base }, "`blocks = 0`: expected a number from 1 to 16"),
    ] {
        let error = Tuning::parse(&entry(&plan, "sm_80", "", wrong), "`t.toml`").unwrap_err().to_string();
        let start = format!("the table of tiles `t.toml`, line 2: {said}");
        assert!(error.starts_with(&start), "{error}");
    }
    // What this kernel, or this architecture, cannot have when it is printed.
    for (wrong, architecture, said) in [
        (Tile { depth: 16, ..base }, "sm_80", "`depth = 16`: products in bf16 have 32 or 64"),
        (Tile { warps: 1, across: 1, ..base }, "sm_80", "1 x 1 warps of 128 rows and 128 columns each"),
        (Tile { rows: 16, warps: 8, ..base }, "sm_80", "those of bf16 have at least 16 rows and columns"),
        (
            Tile { rows: 16, columns: 16, depth: 64, warps: 1, across: 1, ..base },
            "sm_80",
            "more than one warp",
        ),
        (
            Tile { stages: 16, ..base },
            "sm_80",
            "16 stages take 262144 bytes of shared memory, a block has 166912",
        ),
        (Tile { stages: 8, blocks: 1, ..base }, "sm_120", "a block has 101376"),
        (Tile { stages: 6, ..base }, "sm_80", "2 blocks take 198656 bytes of shared memory"),
        (
            Tile { warps: 16, across: 4, blocks: 5, ..base },
            "sm_80",
            "5 blocks of 512 threads: a multiprocessor has 2048",
        ),
        (
            Tile { stages: 2, blocks: 4, ..base },
            "sm_80",
            "leave a thread 128 registers, and its accumulators take 128",
        ),
    ] {
        let tuning = parse(&entry(&plan, architecture, "", wrong));
        let target: Architecture = architecture.parse().unwrap();
        let error = tuned_source(&plan, KernelId(0), target, Some("any"), &tuning).unwrap_err();
        assert!(matches!(error, SourceError::Tuning(TuningError::Line { line: 2, .. })), "{error:?}");
        let error = error.to_string();
        assert!(
            error.starts_with("the table of tiles `t.toml`, line 2: ") && error.contains(said),
            "{error}"
        );
        assert!(error.contains("correct the entry, or remove it"), "{error}");
        let printed = distinct_kernels([&plan], &[target], &tuning).unwrap_err().to_string();
        assert!(printed.starts_with("kernel 0 of entry `test`, a matmul: the table of tiles"), "{printed}");
        // Without a table in between it is an error, too.
        let facts = Facts::of(&plan, KernelId(0)).with_tile(wrong);
        let error = kernel_source(plan.kernel(KernelId(0)), &facts, target).unwrap_err();
        assert!(matches!(&error, SourceError::Tile(_)) && error.to_string().contains(said), "{error}");
    }
    let f32 = Tile { depth: 16, ..base };
    let error = f32.check(DType::F32, &Device::of(Architecture::SM80)).unwrap_err().to_string();
    assert!(error.contains("those of f32 have 32 or 64 rows and 16 or 32 columns"), "{error}");
}

#[test]
fn malformed_tables_are_errors_with_their_line() {
    let plan = product("1000*T", 64, 1);
    let whole = entry(&plan, "sm_80", "a device", TILE);
    let error = |text: &str| Tuning::parse(text, "`t.toml`").unwrap_err().to_string();
    let at = |line: usize, what: &str| format!("the table of tiles `t.toml`, line {line}: {what}");
    assert_eq!(error("rows = 1"), at(1, "a value before the first `[[tile]]`"));
    assert_eq!(error(&whole.replace("blocks = 2\n", "")), at(2, "`blocks` is missing"));
    assert_eq!(error(&whole.replace("blocks = 2", "blocks = x")), at(13, "`blocks` must be a number"));
    assert_eq!(
        error(&whole.replace("blocks = 2", "blocks = 5000000000")),
        at(13, "`blocks` must be a number")
    );
    assert_eq!(error(&format!("{whole}rows = 64")), at(14, "`rows` is there twice"));
    assert!(
        error(&format!("{whole}height = 3")).starts_with(&at(14, "unknown key `height`: expected one of"))
    );
    assert!(error(&format!("{whole}[[tiles]]")).starts_with(&at(14, "expected `[[tile]]` or `key = value`")));
    assert!(error(&whole.replace("[[tile]]", "[tile]")).starts_with(&at(2, "expected `[[tile]]`")));
    assert!(error(&whole.replace("sm_80", "sm_81")).starts_with(&at(2, "unknown architecture `sm_81`")));
    assert_eq!(error(&whole.replace("architecture = \"sm_80\"\n", "")), at(2, "`architecture` is missing"));
    assert!(error(&whole.replace("a device", "")).starts_with(&at(2, "`device` must have 1 to 256")));
    assert!(error(&whole.replace("a device", "a\\device")).starts_with(&at(2, "`device` has a quote")));
    assert_eq!(error(&whole.replace("a device", "a \"device")), at(4, "`device` must be a text in quotes"));
    assert_eq!(error(&whole.replace("\"sm_80\"", "sm_80")), at(3, "`architecture` must be a text in quotes"));
    let kernel = problem(&plan).kernel();
    for digits in ["", "00", &kernel[1..], &kernel.replace(|c: char| c.is_ascii_digit(), "g")] {
        let message = error(&whole.replace(&kernel, digits));
        assert!(message.contains("expected the 64 hexadecimal digits"), "{message}");
    }
    for shape in ["", "1x2x4", "1x2x4x8x16", "1x2x4x12", "1x2x4x0", "1x2x4x-8", "1x2x4x99999999999999999999"]
    {
        let message = error(&whole.replace("1x4096x256x64", shape));
        assert!(message.starts_with(&at(2, "`shape` is `")), "{message}");
    }
    let long = error(&format!("[[tile]]\n{}", "k".repeat(100_000)));
    assert!(long.len() < 1000, "{} characters", long.len());
    // The second may be for a device, or for an architecture, but not for both again.
    let twice = error(&[&*whole, &whole].concat());
    assert_eq!(
        twice,
        at(15, "the entry in line 2 is for the same kernel and shape on a device: remove one of them")
    );
    let apart = [whole.clone(), entry(&plan, "sm_80", "", TILE), entry(&plan, "sm_90", "a device", TILE)];
    assert_eq!(parse(&apart.concat()).len(), 3);
    assert!(parse("# nothing\n").is_empty());
}

#[test]
fn files_are_read_only_so_far() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.toml");
    let read = || Tuning::read(&path).map_err(|error| error.to_string());
    let name = format!("the table of tiles `{}`", path.display());
    assert!(read().unwrap_err().starts_with(&format!("{name} cannot be read: ")));
    let plan = product("1000*T", 64, 1);
    std::fs::write(&path, entry(&plan, "sm_90", "", TILE)).unwrap();
    assert_eq!(read().unwrap().len(), 1);
    std::fs::write(&path, "what").unwrap();
    assert!(read().unwrap_err().starts_with(&format!("{name}, line 1: expected")));
    std::fs::write(&path, vec![b'#'; MAX_BYTES]).unwrap();
    assert!(read().unwrap().is_empty());
    std::fs::write(&path, vec![b'#'; MAX_BYTES + 1]).unwrap();
    assert_eq!(read().unwrap_err(), format!("{name} cannot be read: it has more than {MAX_BYTES} bytes"));
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(read().unwrap_err().contains("cannot be read"));
}

proptest! {
    /// Texts that are nearly tables: numbers, lines and characters changed. What is read prints as a table that reads the same, and gives a
    /// kernel or an error.
    #[test]
    fn damaged_tables_do_no_harm(
        changes in vec((any::<prop::sample::Index>(), "[\\[\\]a-z\"#=x0-9\\n é]{0,3}"), 0..4),
        numbers in vec((any::<prop::sample::Index>(), prop_oneof![0u32..20, (0u32..10).prop_map(|power| 1 << power), any::<u32>()]), 0..4),
    ) {
        let plan = product("1000*T", 64, 1);
        let mut lines: Vec<String> = entry(&plan, "sm_80", "", TILE).lines().map(str::to_owned).collect();
        for (at, number) in numbers {
            let line = &mut lines[5 + at.index(7)];
            let key = line.split(' ').next().unwrap_or_default().to_owned();
            *line = format!("{key} = {number}");
        }
        for (at, text) in changes {
            let number = at.index(lines.len());
            let middle = lines[number].char_indices().nth(lines[number].chars().count() / 2);
            lines[number].insert_str(middle.map_or(0, |(at, _)| at), &text);
        }
        if let Ok(tuning) = Tuning::parse(&lines.join("\n"), "a test's") {
            prop_assert_eq!(parse(&tuning.to_string()).to_string(), tuning.to_string());
            match tuned_source(&plan, KernelId(0), Architecture::SM80, None, &tuning) {
                Ok(source) => prop_assert!(source.functions[0].shared_bytes <= Architecture::SM80.shared_memory()),
                Err(error) => prop_assert!(matches!(error, SourceError::Tuning(_)), "{}", error),
            }
        }
    }
}
