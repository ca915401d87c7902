"""Pods: machines that serve a miner's docker image, and the engine that regenerates a round's prompts on them.

`protocol` is what a provider of pods must offer, `local` serves images as subprocesses, `fleet` does the work on any
provider. The rules (which prompt next, is a pod bad, the verdict) are in `competition.assignment` and `audits`.
"""
