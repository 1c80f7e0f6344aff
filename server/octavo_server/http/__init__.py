"""HTTP without a word about models: limits, keys, errors, event streams."""
