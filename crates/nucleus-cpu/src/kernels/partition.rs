//! How the rows of a batch of products are cut into blocks that share a panel of B.

use std::ops::Range;

/// Consecutive rows that are multiplied with the same right operand, block by block of columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Place of the first row among all rows of the batch.
    pub(super) first_row: usize,
    /// Rows in each register tile.
    pub(super) strips: Vec<usize>,
    /// The product that owns the first row.
    pub(super) product: usize,
    /// The first row's number in that product.
    pub(super) product_row: usize,
}

impl Block {
    pub(super) fn rows(&self) -> usize {
        self.strips.iter().sum()
    }
}

/// Cuts each run of products with the same operand into blocks of at most `block_rows` rows, and those into strips of
/// at most `strip_rows`, all of nearly the same size. `products` gives each one's rows and what stands for its right operands.
pub(super) fn blocks<B: PartialEq>(
    products: &[(usize, B)],
    block_rows: usize,
    strip_rows: usize,
) -> Vec<Block> {
    let mut blocks = Vec::new();
    let (mut start, mut first_row) = (0, 0);
    while start < products.len() {
        let operand = &products[start].1;
        let end = start + products[start..].iter().take_while(|product| product.1 == *operand).count();
        let rows: usize = products[start..end].iter().map(|product| product.0).sum();
        let strips = rows.div_ceil(strip_rows);
        let count = strips.div_ceil((block_rows / strip_rows).max(1));
        for block in 0..count {
            let range = part(strips, count, block);
            let bounds: Vec<usize> = (range.start..=range.end).map(|strip| strip * rows / strips).collect();
            let (product, product_row) = locate(&products[start..end], bounds[0]);
            blocks.push(Block {
                first_row: first_row + bounds[0],
                strips: bounds.windows(2).map(|pair| pair[1] - pair[0]).collect(),
                product: start + product,
                product_row,
            });
        }
        first_row += rows;
        start = end;
    }
    blocks
}

/// `rows` rows cut into strips of at most `strip_rows`, all of nearly the same size.
pub(super) fn strips(rows: usize, strip_rows: usize) -> Vec<usize> {
    let count = rows.div_ceil(strip_rows);
    (0..count).map(|strip| part(rows, count, strip).len()).collect()
}

/// The product that owns row `row` of a run of products, and the row's number in it.
fn locate<B>(products: &[(usize, B)], mut row: usize) -> (usize, usize) {
    for (product, &(rows, _)) in products.iter().enumerate() {
        if row < rows {
            return (product, row);
        }
        row -= rows;
    }
    (products.len(), 0)
}

/// Part `index` of `0..total` cut into `count` parts that differ by at most one.
pub(super) fn part(total: usize, count: usize, index: usize) -> Range<usize> {
    index * total / count..(index + 1) * total / count
}

/// The pieces of `rows` rows from row `row` of product `product` on, cut where products end:
/// (product, row in it, rows, offset among the rows).
pub(super) fn pieces(
    products: impl Fn(usize) -> usize,
    mut product: usize,
    mut row: usize,
    rows: usize,
) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == rows {
            return None;
        }
        while row == products(product) {
            product += 1;
            row = 0;
        }
        let count = (products(product) - row).min(rows - done);
        let piece = (product, row, count, done);
        done += count;
        row += count;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: [u8; 2] = [1, 2];

    #[test]
    fn blocks_cover_every_row_once_and_never_mix_operands() {
        for rows in [[5, 0, 100, 7], [1, 1, 1, 1], [0, 0, 0, 0], [300, 12, 13, 0]] {
            let products = [(rows[0], B[0]), (rows[1], B[0]), (rows[2], B[1]), (rows[3], B[1])];
            let blocks = blocks(&products, 48, 12);
            let mut next = 0;
            for block in &blocks {
                assert_eq!(block.first_row, next);
                assert!(block.rows() <= 48 && block.strips.iter().all(|&strip| (1..=12).contains(&strip)));
                let before: usize = rows[..block.product].iter().sum();
                assert_eq!(block.first_row, before + block.product_row);
                assert!(block.product_row < rows[block.product]);
                let last = next + block.rows() - 1;
                assert_eq!(next < rows[0] + rows[1], last < rows[0] + rows[1], "{block:?}");
                next += block.rows();
            }
            assert_eq!(next, rows.iter().sum::<usize>());
        }
    }

    #[test]
    fn pieces_end_where_products_end() {
        let rows = [3, 0, 4, 9];
        let found: Vec<_> = pieces(|product| rows[product], 0, 2, 8).collect();
        assert_eq!(found, [(0, 2, 1, 0), (2, 0, 4, 1), (3, 0, 3, 5)]);
    }
}
