"""The one error that a model file can cause.

Belongs here: refusals of a file, each a single line that names the reason.
Does not: mistakes of the caller (those are ValueError, TypeError) and of the machine.
"""


class UnreadableModel(ValueError):
    """A model file is refused; the message is one line that names the reason."""

    def __init__(self, reason: object) -> None:
        super().__init__(" ".join(str(reason).split())[:300])
