"""Who is to blame decides what happens next: the whole tree of errors, in one place.

A caller catches a branch, not a list. A miner's fault is recorded and the round goes on; an operator's mistake stops
with what to change; an outage is tried again.
"""


class Gen404Error(Exception):
    """Root of everything this package raises on purpose. The message is one line that says what to do."""


class OperatorError(Gen404Error):
    """A mistake in configuration or a refused action: nothing was changed, the message says what to change."""


class StateFileError(OperatorError):
    """A file of the state repository cannot be read as what it should be. Names the file."""


class MinerFault(Gen404Error):
    """A miner's file, URL, commitment or image is at fault: becomes a recorded result, never a crash."""


class Unavailable(Gen404Error):
    """Something outside did not answer: try again later, nothing was lost."""


class JudgeUnavailable(Unavailable):
    """The judge did not answer. The match stays open; this never becomes a draw."""


class LaneBusy(Unavailable):
    """Another run works on this lane of this round."""
