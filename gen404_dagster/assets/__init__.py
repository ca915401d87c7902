"""The round as software-defined assets, one module a stage: intake, outputs, duels, verification, finale.

Assets are thin: read, call a rule, write, describe. What a page in the UI shows comes from `describe`, so that a live
round, an adopted one and a re-materialized one look alike.
"""
