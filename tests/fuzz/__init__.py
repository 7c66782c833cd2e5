"""Bad input for every decoder that faces the network: a module a target, `python -m tests.fuzz` runs them."""
