//! Every scalar op and everything it can be applied to.

use nucleus_ir::{DType, Op, ScalarOp};

/// Every element-wise op of the table, casts to every type included.
pub fn scalar_ops() -> Vec<Op> {
    let named =
        ScalarOp::ALL.map(|scalar| Op::new(scalar.name(), &[]).expect("a scalar op has no attributes"));
    named.into_iter().chain(DType::COMPUTED.map(|to| Op::Cast { to })).collect()
}

/// Every list of operand types that an element-wise op takes.
pub fn operand_types(op: &Op) -> Vec<Vec<DType>> {
    let scalar = op.scalar().expect("an element-wise op");
    let mut lists = vec![Vec::new()];
    for _ in 0..scalar.arity() {
        let longer = |list: &Vec<DType>| DType::COMPUTED.map(|dtype| [list.as_slice(), &[dtype]].concat());
        lists = lists.iter().flat_map(longer).collect();
    }
    lists.retain(|list| scalar.result(list).is_some());
    lists
}
