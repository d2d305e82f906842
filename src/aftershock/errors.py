"""The two ways aftershock refuses: the user's input is wrong, or one of its own contracts failed."""


class InputError(ValueError):
    """Bad input or usage. The message is one sentence: what is wrong, where, how to mend it. Exit code 2."""


class ContractError(RuntimeError):
    """A contract of aftershock itself failed (a fault did not fire, an undo was not exact). Exit code 4."""
