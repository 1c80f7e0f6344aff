"""Backends that are wrong on purpose, one fault each: what the conformance suite is tried on.

Each is the reference backend with a mistake that somebody has made. `catalogue.FAULTS` lists them; the plugin offers
them as `wrong-<fault>`, and beside them `wrong-nothing`, which is right.
"""
