//! What the graph of gradients looks like.
