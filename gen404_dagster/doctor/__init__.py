"""`gen404 doctor`: what is configured, what works when it is really used, what is missing and what to change.

`examination` runs the checks side by side, each within its time; `parts` and `machine` are the checks. Does not belong
here: doing a part's work otherwise than a round does. A check leaves nothing behind: what it writes, it deletes.
"""

from gen404_dagster.doctor.examination import Check, Finding, Remark, choose, examine

__all__ = ["Check", "Finding", "Remark", "choose", "examine"]
