//! Structured output: what a schema, a grammar or a set of tools lets a model write, and how that is read back.
