//! The Nucleus language: lexer, parser, op table, types and dims, graph, verifier, printer, diagnostics.
