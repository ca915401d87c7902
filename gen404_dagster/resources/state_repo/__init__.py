"""The competition's git repository: read at a commit, changed by whole commits on the remote's head.

Belongs here: a bare mirror of the remote, snapshots, building and pushing a commit, the trailer that makes a step
unique, commits that wait for the network. Does not: what a file means (`competition.models`), where it lies
(`competition.paths`), what to commit (assets).

`commits` is what is said of a commit, `git` runs git and knows what its complaints mean, `trees` builds and reads git's
trees, `refs` are files that name a commit, `repository` is the door to it all: reading, committing, the queue.
"""

from gen404_dagster.resources.state_repo.commits import RUN_TRAILER, STEP_TRAILER, Change, CommitInfo, Step
from gen404_dagster.resources.state_repo.git import check_remote
from gen404_dagster.resources.state_repo.repository import Snapshot, StateRepository
from gen404_dagster.resources.state_repo.trees import MAX_FILE_BYTES

__all__ = [
    "MAX_FILE_BYTES",
    "RUN_TRAILER",
    "STEP_TRAILER",
    "Change",
    "CommitInfo",
    "Snapshot",
    "StateRepository",
    "Step",
    "check_remote",
]
