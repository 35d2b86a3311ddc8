"""Seams to other detection codes, one module each: the only ones that import what they are for."""
