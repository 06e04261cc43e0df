//! Parts of a contraction that differ in numbers of operands and sizes alone share their slots.

use std::collections::HashMap;

use nucleus_plan::{Contraction, Kernel, Operand, Part, Phase, ScalarFunction, Size};

use crate::facts::Facts;
use crate::source::SourceError;
use crate::source::function::Names;

/// Parts that are alike.
pub(super) struct Class {
    /// One of them, with operands and size arguments in the order in which they appear.
    pub(super) part: Part,
    /// The parts, by their numbers.
    pub(super) members: Vec<usize>,
    /// The operands, by their new numbers.
    pub(super) operands: Vec<Operand>,
    /// What is known of the size arguments of all members.
    pub(super) facts: Facts,
    /// Where they are found.
    pub(super) names: PartNames,
}

/// C++ for the operands and sizes of a class.
pub(super) struct PartNames {
    operands: Vec<String>,
    sizes: Vec<String>,
}

impl Names for PartNames {
    fn operand(&self, operand: u32) -> String {
        self.operands[operand as usize].clone()
    }

    fn size(&self, argument: u32) -> String {
        self.sizes[argument as usize].clone()
    }
}

/// Parts of a class: their numbers, and the numbers of what they use.
type Members = Vec<(usize, Numbers)>;

/// The numbers that a part had before it was renumbered.
#[derive(Default)]
struct Numbers {
    operands: Vec<u32>,
    sizes: Vec<u32>,
}

/// The position of `number` in `list`, to which it is appended if it is not there.
fn position(list: &mut Vec<u32>, number: u32) -> u32 {
    let found = list.iter().position(|other| *other == number);
    found.unwrap_or_else(|| {
        list.push(number);
        list.len() - 1
    }) as u32
}

impl Numbers {
    fn function(&mut self, function: &ScalarFunction) -> ScalarFunction {
        let Numbers { operands, sizes } = self;
        function.renumbered(&mut |operand| position(operands, operand), &mut |size| renumbered(sizes, size))
    }

    fn part(&mut self, part: &Part) -> Part {
        let b = self.function(&part.b);
        let groups = part.groups.clone().map(|mut groups| {
            for Phase { function, .. } in &mut groups.phases {
                *function = self.function(function);
            }
            groups
        });
        let epilogue = self.function(&part.epilogue);
        Part { columns: renumbered(&mut self.sizes, part.columns), b, groups, epilogue, ..*part }
    }
}

fn renumbered(sizes: &mut Vec<u32>, size: Size) -> Size {
    match size {
        Size::Arg(number) => Size::Arg(position(sizes, number)),
        constant @ Size::Const(_) => constant,
    }
}

/// The classes of a contraction's parts, and a table in C++ if parts of a class differ in their operands or sizes: by the part, then by the
/// number within the class.
///
/// # Errors
/// A part names an operand that the kernel has not.
pub(super) fn classes(
    kernel: &Kernel,
    contraction: &Contraction,
    facts: &Facts,
) -> Result<(Vec<Class>, String), SourceError> {
    let mut found: HashMap<(Part, Vec<Operand>), usize> = HashMap::new();
    let mut classes: Vec<(Part, Vec<Operand>, Members)> = Vec::new();
    for (number, part) in contraction.parts.iter().enumerate() {
        let mut numbers = Numbers::default();
        let part = numbers.part(part);
        let operands = numbers.operands.iter().map(|operand| kernel.operands.get(*operand as usize).copied());
        let operands: Vec<Operand> = operands
            .collect::<Option<_>>()
            .ok_or_else(|| SourceError::Malformed(format!("part {number}")))?;
        let class = *found.entry((part.clone(), operands.clone())).or_insert_with(|| {
            classes.push((part, operands, Vec::new()));
            classes.len() - 1
        });
        classes[class].2.push((number, numbers));
    }
    let parts = contraction.parts.len();
    // Rows of the tables: operands and sizes of a part that are not those of all members of its class.
    let (mut operand_table, mut size_table) = (vec![Vec::new(); parts], vec![Vec::new(); parts]);
    let classes: Vec<Class> = classes
        .into_iter()
        .map(|(part, operands, members)| {
            let of = |list: fn(&Numbers) -> &Vec<u32>| -> Vec<Vec<u32>> {
                members.iter().map(|(_, numbers)| list(numbers).clone()).collect()
            };
            let numbers: Vec<usize> = members.iter().map(|(number, _)| *number).collect();
            let sizes = of(|numbers| &numbers.sizes);
            let names = PartNames {
                operands: names(
                    "args.o",
                    "PART_OPERANDS",
                    &of(|n| &n.operands),
                    &numbers,
                    &mut operand_table,
                ),
                sizes: names("args.s", "PART_SIZES", &sizes, &numbers, &mut size_table),
            };
            Class { part, operands, facts: facts.of_any(&sizes), members: numbers, names }
        })
        .collect();
    let tables = table("PART_OPERANDS", &operand_table) + &table("PART_SIZES", &size_table);
    Ok((classes, tables))
}

/// The C++ expression of everything that the members of a class list: `array` at a number, or at what the table has for the part.
fn names(
    array: &str,
    table: &str,
    lists: &[Vec<u32>],
    members: &[usize],
    rows: &mut [Vec<u32>],
) -> Vec<String> {
    let count = lists.first().map_or(0, Vec::len);
    let mut names = Vec::with_capacity(count);
    for j in 0..count {
        let first = lists[0][j];
        if lists.iter().all(|list| list[j] == first) {
            names.push(format!("{array}[{first}]"));
            continue;
        }
        let column = rows[members[0]].len();
        for (member, list) in members.iter().zip(lists) {
            rows[*member].push(list[j]);
        }
        names.push(format!("{array}[{table}[part][{column}]]"));
    }
    names
}

fn table(name: &str, rows: &[Vec<u32>]) -> String {
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    if width == 0 {
        return String::new();
    }
    let row = |row: &Vec<u32>| {
        let numbers: Vec<String> = row.iter().map(u32::to_string).collect();
        format!("    {{{}}},\n", numbers.join(", "))
    };
    let rows: String = rows.iter().map(row).collect();
    format!("CONSTANT unsigned short {name}[][{width}] = {{\n{rows}}};\n")
}
