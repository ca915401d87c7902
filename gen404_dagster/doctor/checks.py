"""Which checks there are, in the order in which a round needs them, and how long each may take."""

from gen404_dagster.doctor import machine, parts
from gen404_dagster.doctor.examination import Check
from gen404_dagster.settings import Settings


def checks(settings: Settings, notify: bool = False) -> list[Check]:
    """All checks; `notify`: send a test message to each address of GEN404_NOTIFY."""
    return [
        Check("machine", machine.machine),
        Check("configuration", lambda: machine.configuration(settings)),
        Check("data folder", lambda: machine.data_folder(settings)),
        Check("clock", lambda: machine.clock(settings)),
        Check("dagster", machine.dagster_instance, 60),
        Check("state repository", lambda: parts.state_repository(settings), 300),
        Check("chain", lambda: parts.chain(settings), 300),
        Check("weights", lambda: parts.weights(settings), 150),
        Check("object store", lambda: parts.object_store(settings), 120),
        Check("renderer", lambda: parts.renderer(settings), 330),
        Check("embedder", lambda: parts.embedder(settings), 300),
        Check("judge", lambda: parts.judge(settings), 300),
        Check("builds", lambda: parts.builds(settings), 90),
        Check("pods", lambda: parts.pods(settings), 120),
        Check("notifications", lambda: parts.notifications(settings, notify), 90),
    ]
