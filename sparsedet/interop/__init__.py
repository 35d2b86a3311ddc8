"""Interoperability: one module per framework, which no other module of this library imports."""
