//! What a service embeds: artifacts, weights, sessions, execution.
