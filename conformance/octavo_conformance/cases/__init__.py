"""The cases, a folder or a module for each level: their `cases()` lists them."""
