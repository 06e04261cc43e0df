//! Attention and its gradients over head sizes, groups of heads and numbers of queries and keys: several tiles of each, ragged ends, no
//! keys at all, NaN wherever nothing may be read.

use crate::harness::{Case, check};

/// An attention whose rows have `pad` elements behind the heads, which nothing may touch.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) dtype: &'static str,
    pub(crate) heads: usize,
    pub(crate) key_heads: usize,
    pub(crate) head: usize,
    pub(crate) pad: usize,
}

/// A key of the text is left out if this is false.
fn taken(item: usize, key: usize) -> bool {
    !(key * 7 + item * 3).is_multiple_of(5)
}

impl Shape {
    fn query_row(self) -> usize {
        self.heads * self.head + self.pad
    }

    fn key_row(self) -> usize {
        self.key_heads * self.head + self.pad
    }

    /// Declarations of S queries, K keys and T keys behind a mask. The last of each are not part of the segments, so that these may be empty.
    fn operands(self) -> String {
        let Shape { dtype, .. } = self;
        let (row, key) = (self.query_row(), self.key_row());
        let inputs = [("q", "S", row), ("k", "K", key), ("v", "K", key), ("tk", "T", key), ("tv", "T", key)];
        let mut text = "dim B, S, K, T;\n".to_owned();
        for (name, rows, row) in inputs {
            text += &format!("input {name}: {dtype}[B, {rows}, {row}] per step;\n");
        }
        text += "input mask: bool[B, T] per step;\n";
        for (number, (_, rows, row)) in inputs.into_iter().enumerate() {
            text += &format!("buffer b{number}: {dtype}[B, {rows}, {row}] input {number};\n");
        }
        text + "buffer b5: bool[B, T] input 5;\n"
    }

    fn load(self, operand: usize, size: usize, row: usize) -> String {
        format!("v0 = load o{operand}[s{size}*i0 + {row}*i1 + {}*i2 + i3];", self.head)
    }

    fn sizes(self) -> String {
        let Shape { heads, key_heads, head, .. } = self;
        let scale = 1.0 / (head as f64).sqrt();
        format!(
            "batch s0; queries s1; heads {heads}; key_heads {key_heads}; head_size {head}; scale {scale};"
        )
    }

    fn keys(self, [k, v]: [usize; 2], length: usize, size: usize) -> String {
        let (k, v) = (self.load(k, size, self.key_row()), self.load(v, size, self.key_row()));
        format!("keys s{length}; k {{ {k} return v0; }} v {{ {v} return v0; }}")
    }

    /// The accumulator in the operand, of the same rows as what it is the result or the gradient of.
    fn store(self, operand: usize, size: usize, row: usize) -> String {
        let (dtype, head) = (self.dtype, self.head);
        let (cast, value) = match dtype {
            "f32" => (String::new(), "v0"),
            _ => (format!("v1 = cast(v0, {dtype});"), "v1"),
        };
        format!(
            "{{ v0 = accumulator 0; {cast} store o{operand}[s{size}*i0 + {row}*i1 + {head}*i2 + i3] = {value}; }}"
        )
    }

    /// Results fill their rows, which therefore begin at other places than those of the queries.
    pub(crate) fn forward(self) -> String {
        let (dtype, dense) = (self.dtype, self.heads * self.head);
        let reads = format!("read {dtype}, ").repeat(5);
        format!(
            "{operands}output y: {dtype}[B, S, {dense}];
            buffer b6: {dtype}[B, S, {dense}] output 0;
            kernel k0({reads}read bool, write {dtype}) sizes 9 attention {dtype} {{
                {sizes}
                q {{ {q} return v0; }}
                {image}
                {text}
                mask {{ v0 = load o5[s8*i0 + i1]; return v0; }}
                epilogue {store}
            }}
            launch k0(b0, b1, b2, b3, b4, b5, b6) sizes B, S, K - 1, T - 1, {row}*S, {key}*K, {key}*T, {dense}*S, T per step;
            ",
            operands = self.operands(),
            sizes = self.sizes(),
            q = self.load(0, 4, self.query_row()),
            image = self.keys([1, 2], 2, 5),
            text = self.keys([3, 4], 3, 6),
            store = self.store(6, 7, dense),
            row = self.query_row(),
            key = self.key_row(),
        )
    }

    /// Gradients of the result's squares, as it were: dy is q through a sine. Those named in `wanted` are stored.
    pub(crate) fn gradients(self, wanted: &[&str]) -> String {
        let dtype = self.dtype;
        let (row, key) = (self.heads * self.head, self.key_heads * self.head);
        let results = [
            ("dq", "S", row, 7),
            ("dk", "K - 1", key, 8),
            ("dv", "K - 1", key, 8),
            ("tdk", "T - 1", key, 9),
            ("tdv", "T - 1", key, 9),
        ];
        let results: Vec<_> = results.into_iter().filter(|(name, ..)| wanted.contains(name)).collect();
        let mut outputs = String::new();
        let mut buffers = String::new();
        let mut bound = String::new();
        for (number, (name, rows, row, _)) in results.iter().enumerate() {
            outputs += &format!("output {name}: {dtype}[B, {rows}, {row}];\n");
            buffers += &format!("buffer b{}: {dtype}[B, {rows}, {row}] output {number};\n", 6 + number);
            bound += &format!(", b{}", 6 + number);
        }
        let store = |name: &str| match results.iter().position(|(other, ..)| *other == name) {
            Some(number) => self.store(6 + number, results[number].3, results[number].2),
            None => "{ }".to_owned(),
        };
        let writes = format!(", write {dtype}").repeat(results.len());
        let round = if dtype == "f32" { String::new() } else { format!("v2 = cast(v1, {dtype});") };
        let reads = format!("read {dtype}, ").repeat(5);
        format!(
            "{operands}{outputs}{buffers}
            kernel k0({reads}read bool{writes}) sizes 11 attention_grad {dtype} {{
                {sizes}
                q {{ {q} return v0; }}
                dy {{ {q} v1 = sin(v0); {round} return {dy}; }}
                {image}
                dk {dk}
                dv {dv}
                {text}
                mask {{ v0 = load o5[s10*i0 + i1]; return v0; }}
                dk {tdk}
                dv {tdv}
                dq {dq}
            }}
            launch k0(b0, b1, b2, b3, b4, b5{bound}) sizes B, S, K - 1, T - 1, {padded}*S, {padded_key}*K, {padded_key}*T, {row}*S, {key}*K - {key}, {key}*T - {key}, T per step;
            ",
            operands = self.operands(),
            sizes = self.sizes(),
            q = self.load(0, 4, self.query_row()),
            dy = if dtype == "f32" { "v1" } else { "v2" },
            image = self.keys([1, 2], 2, 5),
            text = self.keys([3, 4], 3, 6),
            dk = store("dk"),
            dv = store("dv"),
            tdk = store("tdk"),
            tdv = store("tdv"),
            dq = store("dq"),
            padded = self.query_row(),
            padded_key = self.key_row(),
        )
    }

    /// Checks a text at sizes [B, S, keys, keys of the text].
    fn check(self, text: &str, sizes: [usize; 4], none: bool) {
        self.with_case(text, sizes, none, &check);
    }

    /// Runs a text at sizes [B, S, keys, keys of the text], with NaN in what is left out. `none` leaves out all of the text.
    pub(crate) fn with_case(self, text: &str, sizes: [usize; 4], none: bool, run: &dyn Fn(&Case)) {
        let [_, s, k, t] = sizes;
        let value = |name: &str, position: usize| {
            if name == "mask" {
                let (item, key) = (position / (t + 1), position % (t + 1));
                return Some(f64::from(u8::from(key == t || (!none && taken(item, key)))));
            }
            let (row, rows, end) = match name {
                "q" => (self.query_row(), s, s),
                "k" | "v" => (self.key_row(), k + 1, k),
                _ => (self.key_row(), t + 1, t),
            };
            let (key, item) = (position / row % rows, position / row / rows);
            let masked = name.starts_with('t') && (none || !taken(item, key));
            (masked || key == end || position % row >= row - self.pad).then_some(f64::NAN)
        };
        let sizes = [sizes[0], s, k + 1, t + 1];
        let dims = ["B", "S", "K", "T"].into_iter().zip(sizes.map(|size| size as i64));
        let dims: Vec<(&str, i64)> = dims.collect();
        // Gradients in a narrow type may be rounded to the neighbouring number.
        let tolerance = if self.dtype == "f32" { 1e-5 } else { 2.0_f64.powi(-8) };
        run(&Case { text, dims: &dims, value: &value, tolerance });
    }
}

/// All gradients.
pub(crate) const ALL: [&str; 5] = ["dq", "dk", "dv", "tdk", "tdv"];

#[test]
fn a_group_of_heads_and_several_tiles() {
    let shape = Shape { dtype: "bf16", heads: 4, key_heads: 1, head: 128, pad: 0 };
    shape.check(&shape.forward(), [1, 150, 70, 75], false);
    let shape = Shape { heads: 2, ..shape };
    shape.check(&shape.gradients(&ALL), [1, 130, 130, 20], false);
}

#[test]
fn a_head_size_between_steps_of_matrix_instructions() {
    let shape = Shape { dtype: "f16", heads: 3, key_heads: 3, head: 40, pad: 8 };
    for sizes in [[2, 20, 70, 0], [1, 20, 0, 33]] {
        shape.check(&shape.forward(), sizes, false);
        shape.check(&shape.gradients(&ALL), sizes, false);
    }
}

#[test]
fn rows_that_begin_anywhere() {
    let shape = Shape { dtype: "bf16", heads: 2, key_heads: 1, head: 64, pad: 3 };
    shape.check(&shape.forward(), [2, 20, 10, 12], false);
    shape.check(&shape.gradients(&["dq", "tdv"]), [2, 20, 10, 12], false);
}

#[test]
fn queries_without_keys() {
    for dtype in ["f32", "bf16"] {
        let shape = Shape { dtype, heads: 2, key_heads: 1, head: 16, pad: 0 };
        let (forward, gradients) = (shape.forward(), shape.gradients(&ALL));
        for sizes in [[1, 5, 0, 0], [2, 5, 0, 7], [1, 5, 9, 40]] {
            shape.check(&forward, sizes, true);
            shape.check(&gradients, sizes, true);
        }
    }
}

#[test]
fn heads_too_large_for_one_tile() {
    let shape = Shape { dtype: "bf16", heads: 2, key_heads: 2, head: 160, pad: 0 };
    shape.check(&shape.forward(), [1, 70, 40, 9], false);
    let shape = Shape { dtype: "f32", heads: 2, key_heads: 1, head: 130, pad: 0 };
    shape.check(&shape.forward(), [1, 10, 70, 9], false);
    shape.check(&shape.gradients(&ALL), [1, 10, 70, 9], false);
}

#[test]
fn heads_of_any_size() {
    for (dtype, head) in [("f32", 7), ("bf16", 12)] {
        let shape = Shape { dtype, heads: 4, key_heads: 2, head, pad: 1 };
        shape.check(&shape.forward(), [1, 70, 66, 5], false);
        shape.check(&shape.gradients(&ALL), [1, 66, 70, 5], false);
    }
}

#[test]
fn only_some_gradients_are_stored() {
    let shape = Shape { dtype: "bf16", heads: 2, key_heads: 1, head: 32, pad: 0 };
    for wanted in [&["dk"][..], &["dv", "tdv"]] {
        shape.check(&shape.gradients(wanted), [1, 9, 40, 5], false);
    }
}
